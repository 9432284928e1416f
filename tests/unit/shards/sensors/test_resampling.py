"""Resampling matrices: properties that hold for any two sensors."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.sensors.resampling import response_matrix
from shards.sensors.sensor import get_sensor

STEPS = st.lists(st.floats(2, 20), min_size=3, max_size=40)
WIDTH = st.floats(2, 60)


def _centers(steps: list[float]) -> np.ndarray:
    return 400 + np.cumsum(steps)


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS, WIDTH, WIDTH)
def test_rows_add_up_to_one_where_covered_and_to_zero_elsewhere(wanted, given_steps, wide, narrow):
    centers, bands = _centers(wanted), _centers(given_steps)
    matrix = response_matrix(centers, [wide] * len(centers), bands, [narrow] * len(bands))
    sums = matrix.sum(1)
    assert np.all((np.abs(sums - 1) < 1e-12) | (sums == 0))
    assert (matrix >= 0).all()
    beyond = (centers < bands.min() - wide / 2) | (centers > bands.max() + wide / 2)
    assert not sums[beyond].any()


@settings(max_examples=60, deadline=None)
@given(STEPS, WIDTH, st.randoms(use_true_random=False))
def test_the_same_bands_stay_as_they_are_in_any_order(steps, width, random):
    bands = _centers(steps)
    order = random.sample(range(len(bands)), len(bands))
    matrix = response_matrix(bands, [width] * len(bands), bands[order], [width] * len(bands))
    np.testing.assert_allclose(matrix, np.eye(len(bands))[:, order], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS, WIDTH, WIDTH, st.randoms(use_true_random=False))
def test_the_order_of_the_bands_does_not_matter(wanted, given_steps, wide, narrow, random):
    centers, bands = _centers(wanted), _centers(given_steps)
    widths = np.linspace(narrow, narrow + 3, len(bands))
    order = random.sample(range(len(bands)), len(bands))
    straight = response_matrix(centers, [wide] * len(centers), bands, widths)
    mixed = response_matrix(centers, [wide] * len(centers), bands[order], widths[order])
    np.testing.assert_array_equal(mixed, straight[:, order])


@settings(max_examples=60, deadline=None)
@given(st.floats(2, 12), st.floats(2, 12), st.floats(2, 30))
def test_a_straight_spectrum_stays_straight(step, narrow, wide):
    """Within the sensor: at its ends, a Gaussian is cut off."""
    bands = np.arange(400, 1000, step)
    centers = np.arange(500, 900, 7.3)
    matrix = response_matrix(centers, [wide] * len(centers), bands, [narrow] * len(bands))
    np.testing.assert_allclose(matrix @ bands, centers, atol=0.05 * step)


def test_nothing_is_made_up_in_a_gap():
    enmap, eo1 = get_sensor("enmap"), get_sensor("eo1")
    matrix = response_matrix(eo1.wavelength_nm, eo1.fwhm_nm, enmap.wavelength_nm, enmap.fwhm_nm)
    centers, covered = np.asarray(eo1.wavelength_nm), matrix.any(1)
    assert not covered[(centers > 1300) & (centers < 1520)].any()
    assert covered[(centers > 1000) & (centers < 1270)].all()
    assert not matrix[np.ix_(centers < 1290, np.asarray(enmap.wavelength_nm) > 1500)].any()
