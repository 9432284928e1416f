"""Errors of bands by ranges of the spectrum."""

import numpy as np

from pretrain.metrics.band_errors import mean_by_range


def test_ranges_without_bands_are_left_out_and_missing_errors_do_not_count():
    errors = np.array([4.0, 1.0, 3.0, np.nan, 8.0])
    assert mean_by_range([2200.0, 500.0, 699.0, 600.0, 700.0], errors) == {
        "visible": 2.0,
        "near_infrared": 8.0,
        "shortwave_2": 4.0,
    }
