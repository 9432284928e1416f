"""The EnMAP band table, and finding its bands in a file."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError, TileError
from shards.sensors.sensor import MATCH_TOLERANCE_NM, get_sensor

KEPT_130_TO_144_NM = (
    1575.90,
    1587.10,
    1598.26,
    1609.36,
    1620.43,
    1631.44,
    1642.41,
    1653.33,
    1664.20,
    1675.03,
    1685.80,
    1696.53,
    1707.20,
    1717.83,
    1728.40,
)
"""Bands 146 to 160 (1-based) of the product: the ones that the published table of 202 bands gets wrong."""


@pytest.fixture(scope="module")
def enmap():
    return get_sensor("enmap")


def test_enmap_has_202_of_224_bands_in_ascending_wavelength(enmap):
    assert (enmap.num_bands, len(enmap.wavelength_nm), len(enmap.fwhm_nm)) == (202, 202, 202)
    assert len(enmap.product_wavelength_nm) == 224
    assert np.all(np.diff(enmap.wavelength_nm) > 0)
    assert np.all(np.diff(enmap.product_wavelength_nm) > 0)
    assert (enmap.wavelength_nm[0], enmap.wavelength_nm[-1]) == (418.24, 2445.53)


def test_bands_130_to_144_have_their_true_wavelengths(enmap):
    assert enmap.wavelength_nm[130:145] == KEPT_130_TO_144_NM


def test_the_two_water_vapour_gaps_are_left_out_and_nothing_else(enmap):
    removed = sorted(set(range(224)) - set(enmap.kept))
    assert removed == [*range(126, 141), *range(160, 167)]
    assert enmap.wavelength_nm == tuple(enmap.product_wavelength_nm[i] for i in enmap.kept)
    assert (enmap.wavelength_nm[125], enmap.wavelength_nm[126]) == (1283.29, 1530.64)
    assert (enmap.wavelength_nm[144], enmap.wavelength_nm[145]) == (1728.40, 1977.37)
    assert set(np.flatnonzero(np.diff(enmap.wavelength_nm) > 13)) == {125, 144}


def test_rgb_bands_are_red_green_and_blue(enmap):
    np.testing.assert_allclose([enmap.wavelength_nm[i] for i in enmap.rgb], [641, 556, 468], atol=3)


def test_table_equals_the_characterization_of_the_product(enmap, enmap_l2a):
    root = ElementTree.parse(enmap_l2a / "enmap_wavelength.xml").getroot()
    rows = sorted(
        (float(band.findtext("wavelengthCenterOfBand")), float(band.findtext("FWHMOfBand")))
        for band in root.iter("bandID")
    )
    assert enmap.product_wavelength_nm == tuple(center for center, _ in rows)
    assert enmap.fwhm_nm == tuple(rows[i][1] for i in enmap.kept)


def test_unknown_sensor_is_refused_and_the_known_one_named():
    with pytest.raises(ConfigError, match=r"'prisma'.*enmap"):
        get_sensor("prisma")


def test_202_bands_without_wavelengths_are_taken_in_file_order(enmap):
    np.testing.assert_array_equal(enmap.select_bands(202, None), np.arange(202))


def test_202_shuffled_bands_are_sorted_by_wavelength(enmap):
    stored = np.random.default_rng(0).permutation(enmap.wavelength_nm)
    np.testing.assert_array_equal(stored[enmap.select_bands(202, stored)], enmap.wavelength_nm)


def test_224_bands_in_detector_order_give_the_202_kept_ones(enmap):
    stored = np.random.default_rng(1).permutation(enmap.product_wavelength_nm)
    np.testing.assert_array_equal(stored[enmap.select_bands(224, stored)], enmap.wavelength_nm)


def test_centers_of_another_product_version_are_accepted(enmap):
    shifted = np.asarray(enmap.product_wavelength_nm) + 0.2
    np.testing.assert_array_equal(enmap.select_bands(224, shifted), enmap.kept)


@pytest.mark.parametrize("count", [1, 201, 203, 223])
def test_other_counts_without_wavelengths_are_refused(enmap, count):
    with pytest.raises(TileError, match=rf"^{count} bands without wavelengths"):
        enmap.select_bands(count, None)


def test_too_few_bands_with_wavelengths_are_refused(enmap):
    with pytest.raises(TileError, match="201 bands have a wavelength, expected 202"):
        enmap.select_bands(201, enmap.product_wavelength_nm[:201])
    with pytest.raises(TileError, match=r"\(1 of 202 bands are missing\)"):
        enmap.select_bands(223, enmap.product_wavelength_nm[:223])


@given(st.data())
def test_bands_are_found_among_any_others_in_any_order(data):
    sensor = get_sensor("enmap")
    rest = sorted(set(range(224)) - set(sensor.kept))
    others = data.draw(st.lists(st.sampled_from(rest), unique=True, max_size=22))
    file = data.draw(st.permutations([*sensor.kept, *others]))
    shift = data.draw(st.floats(-0.9, 0.9))
    centers = np.asarray(sensor.product_wavelength_nm)[file] + shift
    assert [file[position] for position in sensor.select_bands(len(file), centers)] == list(sensor.kept)


def test_bands_that_rounding_made_equal_are_told_apart_only_by_an_ordered_file(enmap):
    rounded = np.round(enmap.wavelength_nm)
    assert len(set(rounded)) < 202
    np.testing.assert_array_equal(enmap.select_bands(202, rounded), np.arange(202))
    with pytest.raises(TileError, match=r"are both at .* nm, and the file is not sorted by wavelength"):
        enmap.select_bands(202, rounded[::-1])


def _one_band_off(centers):
    centers[100] += 1.01 * MATCH_TOLERANCE_NM
    return centers


def _not_a_number(centers):
    centers[100] = float("nan")
    return centers


@pytest.mark.parametrize(
    "damage",
    [
        _one_band_off,
        _not_a_number,
        lambda centers: centers / 1000,
        lambda centers: np.linspace(400, 2500, len(centers)),
    ],
    ids=["one band off", "not a number", "micrometers", "another instrument"],
)
@pytest.mark.parametrize("count", [202, 224])
def test_wavelengths_of_something_else_are_refused(enmap, count, damage):
    centers = np.array(enmap.wavelength_nm if count == 202 else enmap.product_wavelength_nm)
    with pytest.raises(TileError, match="wavelengths are not enmap's"):
        enmap.select_bands(count, damage(centers))
