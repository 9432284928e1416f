"""Resampling matrices: properties that hold for any two sensors."""

import numpy as np
import pytest
from hypothesis import example, given, settings
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


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS, WIDTH, WIDTH, st.floats(-1e4, 1e4), st.floats(-3, 3))
def test_constant_spectra_stay_constant_and_sums_of_spectra_are_resampled_to_sums(
    wanted, steps, wide, narrow, level, by
):
    centers, bands = _centers(wanted), _centers(steps)
    matrix = response_matrix(centers, [wide] * len(centers), bands, [narrow] * len(bands))
    covered = matrix.any(1)
    np.testing.assert_allclose((matrix @ np.full(len(bands), level))[covered], level, rtol=1e-12, atol=1e-12)
    one, other = np.sin(bands / 50), np.cos(bands / 70)
    np.testing.assert_allclose(matrix @ (one + by * other), matrix @ one + by * (matrix @ other), atol=1e-12)
    resampled = (matrix @ one)[covered]
    assert np.all((one.min() - 1e-12 <= resampled) & (resampled <= one.max() + 1e-12))


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS, WIDTH, WIDTH, st.sampled_from([0.125, 0.25, 16.0, 1024.0]))
def test_weights_do_not_depend_on_the_unit_of_length(wanted, steps, wide, narrow, unit):
    """Powers of two, which change no digit."""
    centers, bands = _centers(wanted), _centers(steps)
    widths = [wide] * len(centers), [narrow] * len(bands)
    other = response_matrix(unit * centers, [unit * wide] * len(centers), unit * bands, [unit * narrow] * len(bands))
    np.testing.assert_allclose(other, response_matrix(centers, widths[0], bands, widths[1]), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.data())
def test_the_same_bands_of_many_widths_stay_as_they_are(steps, data):
    bands = _centers(steps)
    widths = data.draw(st.lists(WIDTH, min_size=len(bands), max_size=len(bands)))
    np.testing.assert_allclose(response_matrix(bands, widths, bands, widths), np.eye(len(bands)), atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.05, 30), WIDTH, st.floats(1e-5, 0.5), st.floats(-0.5, 0.5))
@example(0.2, 40.0, 0.00005, -0.49)  # all responses round to 0
def test_rows_add_up_to_one_at_the_ends_of_dense_bands_too(step, width, less, beside):
    bands = np.arange(400, 400 + 50 * step, step)
    matrix = response_matrix([bands[0] + beside * width], [width], bands, [width * (1 - less)] * len(bands))
    assert matrix.sum() == pytest.approx(1)


def test_a_wide_band_beside_a_gap_is_made_of_the_bands_on_its_own_side():
    bands = np.array([400.0, 402, 404, 420, 422, 424])
    matrix = response_matrix([421, 411, 414], [40, 40, 40], bands, [2] * 6)
    assert [np.flatnonzero(row).tolist() for row in matrix] == [[3, 4, 5], [0, 1, 2], [3, 4, 5]]
