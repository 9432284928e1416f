"""GeoTIFF tiles and label tiles: what is read, exactly, and what is refused."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import rasterio
from support.tiles import BANDS, GRID, NODATA, spectra, write_tile

from shards.errors import TileError
from shards.sensors.sensor import get_sensor
from shards.sources.geotiff import Tile, read_tile, read_tile_bytes, tile_size

ENMAP = get_sensor("enmap")


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_int16_tile_comes_back_unchanged(tmp_path, interleave):
    values = spectra(0, 8)
    tile = read_tile(write_tile(tmp_path / "a.tif", values, nodata=NODATA, interleave=interleave), ENMAP, 8)
    assert tile.values.dtype == np.int16
    assert tile.values.flags.c_contiguous
    np.testing.assert_array_equal(tile.values, values)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("units", ["Nanometers", "Micrometers", None])
def test_224_bands_in_detector_order_are_sorted_and_cut_to_202(tmp_path, interleave, units):
    order = np.random.default_rng(2).permutation(224)
    values = spectra(1, 4, bands=224)
    scale = 1000 if units == "Micrometers" else 1
    centers = [ENMAP.product_wavelength_nm[i] / scale for i in order]
    path = write_tile(tmp_path / "a.tif", values[order], wavelengths=centers, units=units, interleave=interleave)
    np.testing.assert_array_equal(read_tile(path, ENMAP).values, values[list(ENMAP.kept)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_of_whole_numbers_are_read_as_int16(tmp_path, dtype):
    values = spectra(2, 4)
    path = write_tile(tmp_path / "a.tif", values.astype(dtype), nodata=NODATA)
    tile = read_tile(path, ENMAP)
    assert tile.values.dtype == np.int16
    np.testing.assert_array_equal(tile.values, values)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_zero_and_negative_numbers_are_values(tmp_path, dtype):
    values = np.tile(np.array([[0, -1], [-496, 10439]], dtype=dtype), (BANDS, 1, 1))
    tile = read_tile(write_tile(tmp_path / "a.tif", values, nodata=NODATA), ENMAP)
    np.testing.assert_array_equal(tile.values, values)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("int16", -9999), ("int16", 0), ("int16", 32767), ("float32", -9999), ("float32", -3.0e38), ("float32", np.nan)],
)
def test_other_nodata_values_become_ours_and_nothing_else_does(tmp_path, dtype, nodata):
    values = np.tile(np.array([[5, 1], [2, 3]], dtype=dtype), (BANDS, 1, 1))
    values[7, 1, 1] = nodata
    expected = np.tile(np.array([[5, 1], [2, 3]], dtype=np.int16), (BANDS, 1, 1))
    expected[7, 1, 1] = NODATA
    tile = read_tile(write_tile(tmp_path / "a.tif", values, nodata=nodata), ENMAP)
    np.testing.assert_array_equal(tile.values, expected)


def test_nan_is_nodata_whatever_the_tag_says(tmp_path):
    values = spectra(3, 4).astype(np.float32)
    values[9, 2, 2] = np.nan
    tile = read_tile(write_tile(tmp_path / "a.tif", values, nodata=NODATA), ENMAP)
    assert tile.values[9, 2, 2] == NODATA
    np.testing.assert_array_equal(np.delete(tile.values, 9, 0), np.delete(values, 9, 0))


def test_the_pixel_grid_is_kept(tmp_path):
    tile = read_tile(write_tile(tmp_path / "a.tif", spectra(0, 4)), ENMAP)
    assert tile.crs == "EPSG:32633"
    assert tile.transform == tuple(GRID)[:6]


def test_a_tile_without_a_grid_is_read_without_a_warning_or_a_file_beside_it(tmp_path):
    path = write_tile(tmp_path / "a.tif", spectra(0, 4), georeferenced=False)
    before = sorted(tmp_path.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_tile(path, ENMAP).crs is None
        assert tile_size(path) == 4
    assert sorted(tmp_path.iterdir()) == before


def _constant(value, dtype):
    return np.full((BANDS, 4, 4), value, dtype=dtype)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (_constant(30.5, "float32"), "30.5 in band 1 is not a whole number"),
        (_constant(32768, "float32"), "beyond int16"),
        (_constant(-32769, "float32"), "beyond int16"),
        (_constant(np.inf, "float32"), "beyond int16"),
        (_constant(-np.inf, "float64"), "beyond int16"),
        (_constant(7, "uint8"), "dtype uint8"),
        (_constant(40000, "uint16"), "value 40000 in band 1 is beyond int16"),
        (_constant(-40000, "int32"), "value -40000 in band 1 is beyond int16"),
        (_constant(7, "complex64"), "dtype complex64"),
        (spectra(0, 4, bands=201), "201 bands"),
        (spectra(0, 4, bands=223), "223 bands without wavelengths"),
        (spectra(0, 8), "8x8 px where 4x4"),
        (spectra(0, 8)[:, :4], "4x8 px where 4x4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tile_of_another_kind_is_refused_in_one_line_that_names_it(tmp_path, values, reason):
    _assert_refused(write_tile(tmp_path / "a.tif", values), reason)


def _assert_refused(path, reason):
    with warnings.catch_warnings(), pytest.raises(TileError) as caught:
        warnings.simplefilter("error")
        read_tile(path, ENMAP, 4)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path, interleave, share):
    path = write_tile(tmp_path / "a.tif", spectra(0, 4), interleave=interleave)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    _assert_refused(path, "")


def test_a_text_file_named_tif_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    path.write_text("not found\n")
    _assert_refused(path, "not a readable raster")


def test_a_missing_file_is_refused(tmp_path):
    _assert_refused(tmp_path / "a.tif", "not a readable raster")


def test_a_folder_named_tif_is_refused(tmp_path):
    (tmp_path / "a.tif").mkdir()
    _assert_refused(tmp_path / "a.tif", "not a readable raster")


def test_a_wavelength_that_is_no_number_is_refused(tmp_path):
    centers = [*ENMAP.wavelength_nm[:-1], "SWIR"]
    _assert_refused(write_tile(tmp_path / "a.tif", spectra(0, 4), wavelengths=centers), "SWIR")


@pytest.mark.parametrize("without", [201, 100, 0])
def test_a_band_without_a_wavelength_among_others_with_one_is_refused(tmp_path, without):
    centers = [*reversed(ENMAP.wavelength_nm)]
    centers[without] = None
    _assert_refused(write_tile(tmp_path / "a.tif", spectra(0, 4), wavelengths=centers), "wavelength")


def test_tile_size_is_read_from_the_header_and_none_where_there_is_none(tmp_path):
    assert tile_size(write_tile(tmp_path / "a.tif", spectra(0, 8))) == 8
    assert tile_size(write_tile(tmp_path / "b.tif", spectra(0, 8)[:, :4])) is None
    assert tile_size(tmp_path / "missing.tif") is None


def test_real_tile_has_its_bands_by_wavelength(enmap_potsdam):
    path = sorted((enmap_potsdam / "images").glob("*.tif"))[0]
    with rasterio.open(path) as file:
        order = sorted(file.indexes, key=lambda band: float(file.tags(band)["wavelength"]))
        assert order != list(file.indexes)
        stored = file.read([order[i] for i in (*range(126), *range(141, 160), *range(167, 224))])
    tile = read_tile(path, ENMAP, 32)
    np.testing.assert_array_equal(tile.values, stored)
    assert tile.crs == "EPSG:32633"
    assert not np.any(tile.values == NODATA)


# ---- bytes, days and places ----


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_the_bytes_of_a_file_make_the_tile_of_the_file(tmp_path, interleave):
    path = write_tile(tmp_path / "a.tif", spectra(0, 8), nodata=NODATA, interleave=interleave)
    from_file, from_bytes = read_tile(path, ENMAP, 8), read_tile_bytes(path.read_bytes(), "x!a.tif", ENMAP, 8)
    np.testing.assert_array_equal(from_bytes.values, from_file.values)
    without_values = {"values": None}
    assert dataclasses.asdict(from_bytes) | without_values == dataclasses.asdict(from_file) | without_values


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_cut_bytes_are_refused_in_one_line_that_begins_with_their_name(tmp_path, share):
    data = write_tile(tmp_path / "a.tif", spectra(0, 4)).read_bytes()
    with pytest.raises(TileError) as caught:
        read_tile_bytes(data[: int(len(data) * share)], "part_1.tar!enmap/a.tif", ENMAP)
    assert str(caught.value).startswith("part_1.tar!enmap/a.tif: ") and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("bands", "size", "reason"), [(201, 4, "201 bands"), (202, 5, "5x5 px where 4x4")])
def test_bytes_of_another_kind_are_refused_like_files(tmp_path, bands, size, reason):
    data = write_tile(tmp_path / "a.tif", spectra(0, size, bands=bands)).read_bytes()
    with pytest.raises(TileError, match=f"^x!a.tif: {reason}"):
        read_tile_bytes(data, "x!a.tif", ENMAP, 4)


@pytest.mark.parametrize(
    ("tags", "day"),
    [
        ({}, ""),
        ({"TIFFTAG_DATETIME": "2022:07:24 10:45:26"}, "2022-07-24"),
        ({"TIFFTAG_DATETIME": "0000:00:00 00:00:00"}, ""),
        ({"TIFFTAG_DATETIME": "2022:13:45 00:00:00"}, ""),
        ({"TIFFTAG_DATETIME": "yesterday"}, ""),
        ({"start_time": "2022-07-24T10:45:26", "TIFFTAG_DATETIME": "2023:06:28 16:56:14"}, "2022-07-24"),
        ({"start_time": "unknown", "TIFFTAG_DATETIME": "2023:06:28 16:56:14"}, "2023-06-28"),
    ],
)
def test_the_day_comes_from_tags_that_hold_a_date(tmp_path, tags, day):
    path = write_tile(tmp_path / "a.tif", spectra(0, 4))
    with rasterio.open(path, "r+") as file:
        file.update_tags(**tags)
    assert read_tile(path, ENMAP).date == day


def _tile(crs, x, y):
    return Tile(np.zeros((1, 10, 20), np.int16), crs, (30.0, 0.0, x, 0.0, -30.0, y))


def test_the_center_is_that_of_the_pixels():
    lon, lat = _tile("EPSG:32633", 500000.0 - 300.0, 150.0).center_lonlat()  # the zone's meridian, at the equator
    assert (lon, lat) == pytest.approx((15.0, 0.0), abs=1e-9)


@pytest.mark.parametrize(
    ("crs", "x", "y"),
    [
        (None, 0.0, 0.0),
        ('LOCAL_CS["grid",UNIT["meter",1]]', 0.0, 0.0),
        ("EPSG:32633", 1e12, 1e12),
        ("EPSG:3857", 1e300, 1e300),  # PROJ alone would not come back
        ("EPSG:32633", 366015.0, math.nan),
    ],
)
def test_a_tile_without_a_place_on_earth_has_no_center(crs, x, y):
    assert all(math.isnan(degrees) for degrees in _tile(crs, x, y).center_lonlat())


def test_a_real_tile_knows_its_day_and_place(enmap_potsdam):
    path = sorted((enmap_potsdam / "images").glob("*.tif"))[0]
    tile = read_tile_bytes(path.read_bytes(), path.name, ENMAP, 32)
    assert tile.date == "2022-07-24"
    assert tile.center_lonlat() == pytest.approx((13.04, 52.42), abs=0.2)
    np.testing.assert_array_equal(tile.values, read_tile(path, ENMAP).values)  # 224 bands in detector order
