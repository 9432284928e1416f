"""EMIT L2A reflectance as LP DAAC documents it: a lookup table of a rotated swath, fill values, and a mask file."""

import h5py
import numpy as np
import pytest
from rasterio.windows import Window
from support.products import SMALL, cube_of, make_product

from shards.errors import SourceError
from shards.sources.images import open_image
from tools.sample_ground import flags, reflectance
from tools.sample_products import emit_bands, lookup_table, swath_pixels


@pytest.fixture
def path(tmp_path):
    return make_product("emit", tmp_path)


@pytest.fixture
def raw(path):
    """The same file without its lookup table."""
    with h5py.File(path, "r+") as file:
        del file["location/glt_x"], file["location/glt_y"]
    return path


def truth():
    """Return what was written, in sensor geometry, as digital numbers; NaN where missing."""
    values = 10000 * reflectance(SMALL, *emit_bands(), *swath_pixels(SMALL)).astype(float)
    values[:, 0] = np.nan
    return values


def test_the_map_holds_the_pixels_that_the_lookup_table_names(path):
    found, written = cube_of(path), truth()
    column, row = lookup_table(SMALL)
    wanted = np.where(column > 0, written[:, row - 1, column - 1], np.nan)
    assert 0.7 < (column > 0).mean() < 0.95
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))
    assert np.nanmax(np.abs(found - wanted)) <= 0.501
    with open_image(path) as image:
        assert image.grid.crs == "EPSG:4326" and image.grid.shape == (40, 40)
        assert image.grid.transform == pytest.approx(
            (0.00054, 0, 13.0 + 150 * 0.00054, 0, -0.00054, 52.4 - 110 * 0.00054)
        )
        assert image.control_points() == []


def test_without_a_lookup_table_the_swath_is_read_with_control_points(raw):
    found, written = cube_of(raw), truth()
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(written))
    assert np.nanmax(np.abs(found - written)) <= 0.501
    with open_image(raw) as image, h5py.File(raw) as file:
        assert image.grid.transform is None
        first, last = image.control_points()[0], image.control_points(cell=4)[-1]
        assert (first.row, first.col, first.x) == (0.5, 0.5, file["location/lon"][0, 0])
        assert (last.row, last.y) == (39.5 / 4, file["location/lat"][-1, -1])


def test_bands_that_are_not_good_are_missing(path):
    with open_image(path) as image:
        np.testing.assert_array_equal(np.isfinite(cube_of(path)).any((1, 2)), image.good)
        assert 200 < sum(image.good) < 285


def test_a_window_and_some_bands_are_those_of_the_whole(path):
    with open_image(path, ["cloud", "cirrus"]) as image:
        whole, bands = image.read(), [250, 3, 70]
        part = image.read(bands, Window(5, 9, 20, 12))
    np.testing.assert_array_equal(part, whole[[band - 1 for band in bands], 9:21, 5:25])


def test_flags_of_the_mask_file_are_missing_where_asked(path, raw):
    cloud = flags()["cloud"][swath_pixels(SMALL)]
    cloud[0] = False  # the row without data
    plain, masked = cube_of(raw), cube_of(raw, "cloud")
    assert 0.2 < cloud.mean() < 0.9
    np.testing.assert_array_equal(np.isfinite(plain[80]) & ~np.isfinite(masked[80]), cloud)


def _break_table(file):
    file["location/glt_x"][3, 3] = 41


def _break_table_below(file):
    file["location/glt_y"][3, 3] = -7


def _drop_wavelengths(file):
    del file["sensor_band_parameters/wavelengths"]


def _blank_wavelengths(file):
    file["sensor_band_parameters/wavelengths"][...] = 0


def _make_radiance(file):
    file.move("reflectance", "radiance")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_break_table, "glt_x names pixel 41, but the swath has 40"),
        (_break_table_below, "glt_y names pixel -7, but the swath has 40"),
        (_drop_wavelengths, "sensor_band_parameters/wavelengths can't be read"),
        (_blank_wavelengths, "gives no wavelengths"),
        (_make_radiance, "EMIT L1B file holds radiance, not reflectance: order the L2A product"),
    ],
)
def test_a_product_that_contradicts_itself_is_one_line(path, change, message):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(SourceError, match=message) as caught, open_image(path):
        pass
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("size", [40, 24])
def test_the_mask_of_another_scene_is_one_line(path, tmp_path, size):
    other = make_product("emit", tmp_path / "other", SMALL.__class__(size=size, day="20220829"))
    mask = path.with_name(path.name.replace("_RFL_", "_MASK_"))
    mask.write_bytes(other.with_name(other.name.replace("_RFL_", "_MASK_")).read_bytes())
    with pytest.raises(SourceError, match=r"_MASK_.*: the mask of another scene than EMIT_L2A_RFL_"), open_image(path):
        pass


def test_without_a_mask_file_there_is_no_quality_layer(path):
    path.with_name(path.name.replace("_RFL_", "_MASK_")).unlink()
    assert np.isfinite(cube_of(path)).any()
    with pytest.raises(SourceError, match="no quality layer 'cloud' to mask: it has none"):
        cube_of(path, "cloud")


def test_a_truncated_file_is_one_line(path):
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(SourceError, match=r"\.nc: truncated or damaged .*: download it again"), open_image(path):
        pass
