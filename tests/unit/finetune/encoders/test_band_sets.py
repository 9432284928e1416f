"""Band sets: subsets of a tile's bands, and other sensors computed from them."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import BandSetName
from finetune.encoders.band_sets import SENSORS, SUBSETS, BandSet, band_set
from shards.errors import ConfigError
from shards.sensors.sensor import get_sensor, sensor_of_bands

ENMAP = get_sensor("enmap")


def _names(found: BandSet) -> set[float]:
    return set(found.wavelength_nm.tolist())


def test_every_name_of_the_config_is_defined():
    assert set(get_args(BandSetName)) == SUBSETS.keys() | SENSORS.keys()


@pytest.mark.parametrize("name", get_args(BandSetName))
def test_bands_are_means_of_the_tile_s_bands_in_order_of_wavelength(name):
    found = band_set(name, ENMAP)
    assert found.response.shape == (len(found.wavelength_nm), ENMAP.num_bands)
    np.testing.assert_allclose(found.response.sum(1), 1.0)
    assert (np.diff(found.wavelength_nm) > 0).all()
    assert found.fwhm_nm.shape == found.wavelength_nm.shape


@pytest.mark.parametrize("name", SENSORS)
def test_a_linear_spectrum_looks_the_same_to_any_sensor(name):
    found, centers = band_set(name, ENMAP), np.asarray(ENMAP.wavelength_nm)
    error = np.abs(found.response @ centers - found.wavelength_nm)
    assert np.median(error) < 0.5
    assert (error <= found.fwhm_nm / 2).all()  # edges and gaps cut a response


def test_complements_share_no_band_and_cover_all():
    everything = _names(band_set("all", ENMAP))
    for first, second in (("even", "odd"), ("first_half", "last_half"), ("vnir", "swir")):
        one, other = _names(band_set(first, ENMAP)), _names(band_set(second, ENMAP))
        assert not one & other
        assert one | other == everything
    assert len(band_set("random_40", ENMAP).wavelength_nm) == 40


@given(st.permutations(range(12)))
def test_subsets_do_not_depend_on_the_order_of_a_tile_s_bands(order):
    centers, widths = 400.0 + 20 * np.arange(12), np.full(12, 8.0)
    ascending = sensor_of_bands("mine", centers, widths)
    shuffled = sensor_of_bands("mine", centers[order], widths)
    values = np.random.default_rng(0).random(12)
    for name in ("even", "middle_half", "swir" if centers.max() > 1000 else "vnir"):
        one, other = band_set(name, ascending), band_set(name, shuffled)
        np.testing.assert_allclose(one.response @ values, other.response @ values[list(order)])


@pytest.mark.parametrize("name", ["even", "random_40", "vnir", "swir", "prisma", "sentinel2"])
def test_a_linear_spectrum_resampled_from_a_set_is_itself_within_its_range_and_missing_beyond(name):
    bands, centers = band_set(name, ENMAP), np.asarray(ENMAP.wavelength_nm)
    matrix = bands.resampled_to(ENMAP.wavelength_nm, ENMAP.fwhm_nm)
    within = (centers >= bands.wavelength_nm[0]) & (centers <= bands.wavelength_nm[-1])
    np.testing.assert_allclose(matrix[within].sum(1), 1)
    beyond = np.maximum(bands.wavelength_nm[0] - centers, centers - bands.wavelength_nm[-1])
    assert not matrix[beyond > np.asarray(ENMAP.fwhm_nm) / 2].any()
    np.testing.assert_allclose((matrix @ centers)[within], centers[within], atol=8)


def test_tiles_without_such_bands_are_an_error_in_one_line():
    vnir = sensor_of_bands("camera", [450.0, 550.0, 650.0], [10.0] * 3)
    with pytest.raises(ConfigError, match="key 'shift': camera has no bands of 'swir': leave it out"):
        band_set("swir", vnir)
