"""From one sensor's bands to another's: Gaussian responses, missing values, band tables that don't go together."""

import numpy as np
import pytest
import torch
from support.small_encoder import small_description

from finetune.encoders.images import ImageInput, check_same_bands
from pretrain.models.normalize import Normalizer
from shards.errors import ConfigError
from shards.sensors.resampling import response_matrix
from shards.sensors.sensor import NODATA, get_sensor, sensor_names
from shards.sensors.spectrum import gaps

ENMAP, DESIS = get_sensor("enmap"), get_sensor("desis")


def _to_enmap(sensor) -> np.ndarray:
    return response_matrix(ENMAP.wavelength_nm, ENMAP.fwhm_nm, sensor.wavelength_nm, sensor.fwhm_nm)


@pytest.mark.parametrize("name", sensor_names())
def test_rows_add_up_to_one_or_are_empty_beyond_the_sensor_and_in_its_gaps(name):
    sensor = get_sensor(name)
    sums, wanted, bands = _to_enmap(sensor).sum(1), np.asarray(ENMAP.wavelength_nm), np.asarray(sensor.wavelength_nm)
    order = np.argsort(bands)
    stretches = np.split(bands[order], gaps(bands[order], np.asarray(sensor.fwhm_nm)[order]))
    inside = np.any([(wanted >= stretch[0]) & (wanted <= stretch[-1]) for stretch in stretches], axis=0)
    np.testing.assert_allclose(sums[inside], 1.0)
    far = np.all([(wanted < stretch[0] - 10) | (wanted > stretch[-1] + 10) for stretch in stretches], axis=0)
    assert not sums[far].any()


def test_a_sensor_resampled_to_itself_stays_as_it_is():
    np.testing.assert_allclose(_to_enmap(ENMAP), np.eye(202))


def test_a_straight_spectrum_stays_straight():
    matrix = _to_enmap(DESIS)
    inner = [row for row, center in enumerate(ENMAP.wavelength_nm) if 425 < center < 975]
    np.testing.assert_allclose(
        (matrix @ np.asarray(DESIS.wavelength_nm))[inner], np.asarray(ENMAP.wavelength_nm)[inner], atol=0.35
    )


def test_a_narrow_line_is_blurred_to_the_wanted_width():
    """A line of DESIS's width seen through EnMAP's becomes one of EnMAP's width: variances add."""
    matrix, centers = _to_enmap(DESIS), np.asarray(DESIS.wavelength_nm)
    for wanted in (30, 45, 60):
        weights = matrix[wanted]
        mean = (weights * centers).sum()
        blurred = np.sqrt((weights * (centers - mean) ** 2).sum() + (3.5 / 2.3548) ** 2) * 2.3548
        assert blurred == pytest.approx(ENMAP.fwhm_nm[wanted], rel=0.1)


def test_tiles_are_resampled_then_normalized_and_missing_stays_missing():
    response = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    inputs = ImageInput([10.0, 20.0, 30.0], [2.0, 4.0, 5.0], None, response)
    tiles = torch.tensor([[[[10, 30]], [[20, NODATA]], [[40, 50]]]], dtype=torch.int16)
    found = inputs(tiles)
    assert found[0, :, 0, 0].tolist() == [(15 - 10) / 2, (40 - 20) / 4, 0.0]  # the last band is not covered
    assert found[0, :, 0, 1].tolist() == [0.0, (50 - 20) / 4, 0.0]  # of the first, half of what makes it is missing
    assert inputs.bands == 3


def test_without_a_response_tiles_are_normalized():
    tiles = torch.tensor([[[[5, NODATA]]]], dtype=torch.int16)
    torch.testing.assert_close(ImageInput([1.0], [2.0], None)(tiles), Normalizer([1.0], [2.0])(tiles))


def test_bands_that_differ_are_an_error_that_says_what_to_do():
    own = small_description(wavelength_nm=list(ENMAP.wavelength_nm), fwhm_nm=list(ENMAP.fwhm_nm))
    check_same_bands(own, ENMAP)
    with pytest.raises(
        ConfigError, match=r"202 bands of enmap, but the tiles have 235 of desis: set data\.bands=native"
    ):
        check_same_bands(own, DESIS)
    moved = small_description(wavelength_nm=[one + 2 for one in ENMAP.wavelength_nm], fwhm_nm=list(ENMAP.fwhm_nm))
    with pytest.raises(ConfigError, match="202 bands of enmap, but the tiles have 202 of enmap"):
        check_same_bands(moved, ENMAP)
