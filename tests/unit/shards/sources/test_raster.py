"""What a raster says of itself is heard wherever it stands, and values are converted exactly or refused."""

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from rasterio.windows import Window
from support.rasters import DETECTORS, ENMAP, PLACE, PRODUCT_NM, cube, values_of, write

from shards.errors import TileError
from shards.sensors.sensor import NODATA
from shards.sources.digital_numbers import digital_numbers, missing_pixels
from shards.sources.geotiff import read_tile
from shards.sources.raster import open_raster

# ---- scale and offset ----


def scaled(path, values, scale, offset):
    write(path, values)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [scale] * file.count, [offset] * file.count
    return path


@pytest.mark.parametrize(
    ("dtype", "scale", "offset", "factor", "shift"),
    [
        ("int16", 1e-4, 0, 1, 0),
        ("int16", 1e-4, -0.1, 1, -1000),
        ("int16", float(np.float32(1e-4)), 0, 1, 0),
        ("uint16", 2e-4, 0, 2, 0),
        ("uint16", 1e-4, -0.1, 1, -1000),
        ("int32", 1e-4, 0.05, 1, 500),
        ("int16", 1, -1000, 1, -1000),
        ("uint8", 0.01, 0, 100, 0),
        ("float32", 1e-4, 0, 1, 0),
    ],
)
def test_scale_and_offset_are_applied_where_digital_numbers_come_out(tmp_path, dtype, scale, offset, factor, shift):
    values = (cube() % 250).astype(dtype)
    found = values_of(scaled(tmp_path / "a.tif", values, scale, offset))
    np.testing.assert_array_equal(found, values.astype(int) * factor + shift)


@pytest.mark.parametrize(("scale", "offset"), [(3e-5, 0), (1e-4, 0.00005), (0.01, 1), (1, 0.5), (0, 0.1), (1e300, 0)])
def test_scale_and_offset_that_make_no_digital_numbers_are_named(tmp_path, scale, offset):
    with pytest.raises(TileError, match=r"a\.tif: (value .* in band \d+.*(scale|not a whole number)|a scale of 0)"):
        values_of(scaled(tmp_path / "a.tif", cube(), scale, offset))


def test_missing_pixels_are_not_scaled(tmp_path):
    values = cube().astype("uint16")
    values[:, 0, 0] = 65535
    path = write(tmp_path / "a.tif", values, nodata=65535)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [1e-4] * 202, [-0.1] * 202
    found = values_of(path)
    assert (found[:, 0, 0] == NODATA).all()
    np.testing.assert_array_equal(found[:, 1], values[:, 1].astype(int) - 1000)


@pytest.mark.parametrize("tags", [{"scale_factor": "0.0001", "add_offset": "-0.1"}, {"Add_Offset": "-1000"}])
def test_scales_in_the_names_of_the_cf_conventions_count(tmp_path, tags):
    path = write(tmp_path / "a.tif", cube())
    with rasterio.open(path, "r+") as file:
        file.update_tags(**tags)
    np.testing.assert_array_equal(values_of(path), cube().astype(int) - 1000)


def test_a_scale_that_is_no_number_is_one_line(tmp_path):
    path = write(tmp_path / "a.tif", cube())
    with rasterio.open(path, "r+") as file:
        file.update_tags(scale_factor="ten thousand")
    with pytest.raises(TileError, match=r"a\.tif: the scale or offset in its tags is not a number"):
        values_of(path)


@given(
    st.sampled_from(["int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]),
    st.lists(st.integers(-40000, 70000), min_size=4, max_size=4),
)
def test_whole_numbers_of_any_type_come_out_exactly_or_are_refused(dtype, numbers):
    numbers = [number for number in numbers if np.can_cast(np.min_scalar_type(number), dtype, "safe")] or [7]
    stored = np.resize(np.asarray(numbers, dtype), (1, 2, 2))
    try:
        found = digital_numbers(stored, None, np.array([1e-4]), np.array([0.0]), [1])
    except TileError as error:
        assert max(numbers) > 32767 or min(numbers) < -32768
        assert str(next(n for n in stored.ravel().tolist() if not -32768 <= n <= 32767))[:5] in str(error)
    else:
        np.testing.assert_array_equal(found, stored.astype(int))


# ---- no data ----


def half_hidden():
    values, shown = cube(), np.full((8, 8), 255, np.uint8)
    shown[:4] = 0
    return values, shown


def assert_half_is_missing(path, values):
    found = values_of(path)
    assert (found[:, :4] == NODATA).all()
    np.testing.assert_array_equal(found[:, 4:], values[:, 4:])


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("nodata", [None, NODATA, -9999])
def test_masks_inside_and_beside_a_file_count(tmp_path, internal, nodata):
    values, shown = half_hidden()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = write(tmp_path / "a.tif", values, nodata=nodata)
        with rasterio.open(path, "r+") as file:
            file.write_mask(shown)
    assert (tmp_path / "a.tif.msk").exists() != internal
    assert_half_is_missing(path, values)


@pytest.mark.parametrize("nodata", [None, NODATA])
def test_an_alpha_band_hides_pixels_and_is_no_band(tmp_path, nodata):
    values, shown = half_hidden()
    path = write(tmp_path / "a.tif", np.concatenate([values, shown[None].astype("int16")]), nodata=nodata)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.gray] * 202 + [ColorInterp.alpha]
    assert_half_is_missing(path, values)


def test_a_nodata_value_in_a_sidecar_counts(tmp_path):
    values = cube()
    values[:, :4] = -999
    path = write(tmp_path / "a.tif", values)
    bands = "".join(f'<PAMRasterBand band="{b}"><NoDataValue>-999</NoDataValue></PAMRasterBand>' for b in range(1, 203))
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    assert_half_is_missing(path, values)


def test_nodata_of_one_band_hides_no_other_band(tmp_path):
    values = cube()
    values[0, :4] = -999
    found = values_of(write(tmp_path / "a.tif", values, nodata=-999))
    assert (found[0, :4] == NODATA).all()
    np.testing.assert_array_equal(found[1:], values[1:])


def test_the_lowest_float_is_nodata_though_gdal_tells_it_as_a_double(tmp_path):
    values = cube().astype("float32")
    values[:, :4] = np.finfo("float32").min
    assert_half_is_missing(write(tmp_path / "a.tif", values, nodata=float(np.finfo("float32").min)), values)


def test_each_band_has_its_own_nodata_value():
    stored = np.array([[[1, 2]], [[1, 2]], [[1, 2]]])
    np.testing.assert_array_equal(missing_pixels(stored, [1, 2, None])[:, 0], [[1, 0], [0, 1], [0, 0]])


@pytest.mark.parametrize("place", ["band tags", "list"])
def test_bands_of_a_bad_band_list_are_missing(tmp_path, place):
    path = write(tmp_path / "a.tif", cube())
    with rasterio.open(path, "r+") as file:
        if place == "band tags":
            file.update_tags(8, bbl="0")
            file.update_tags(9, bbl="1.0")
        else:
            file.update_tags(ns="ENVI", bbl=f"{{{', '.join('0' if band == 7 else '1.0' for band in range(202))}}}")
    found = values_of(path)
    assert (found[7] == NODATA).all()
    np.testing.assert_array_equal(np.delete(found, 7, 0), np.delete(cube(), 7, 0))


# ---- ENVI ----


@pytest.mark.parametrize("name", ["scene.dat", "scene.img", "scene", "SCENE.BSQ"])
def test_envi_files_say_all_of_it_in_their_header(tmp_path, name):
    values = cube(224).astype("float32")
    values[:, :4] = -9999
    path = write(tmp_path / name, values[DETECTORS], driver="ENVI", nodata=-9999)
    header = next(path for path in tmp_path.iterdir() if path.suffix.lower() == ".hdr")
    centers = ", ".join(f"{nm / 1000:.6f}" for nm in PRODUCT_NM[DETECTORS])
    bad = ", ".join("0" if band == 3 else "1" for band in DETECTORS)
    with open(header, "a") as file:
        file.write(f"wavelength units = Micrometers\nwavelength = {{{centers}}}\nbbl = {{{bad}}}\n")
        file.write("reflectance scale factor = 10000\nacquisition time = 2022-07-24T10:45:26Z\n")
    tile = read_tile(path, ENMAP)
    expected = cube(224)[list(ENMAP.kept)]
    expected[:, :4] = NODATA
    expected[3] = NODATA
    np.testing.assert_array_equal(tile.values, expected)
    assert (tile.crs, tile.transform, tile.date) == ("EPSG:32633", tuple(PLACE)[:6], "2022-07-24")


# ---- place ----


def grid_of(path):
    with open_raster(path) as raster:
        return raster.grid


def test_a_georeference_in_a_sidecar_counts(tmp_path):
    path = write(tmp_path / "a.tif", cube(), crs=None, transform=None)
    assert (grid_of(path).crs, grid_of(path).transform) == (None, None)
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>300015,30,0,5800005,0,-30</GeoTransform></PAMDataset>"
    )
    assert (grid_of(path).crs, grid_of(path).transform) == ("EPSG:32633", tuple(PLACE)[:6])


@pytest.mark.parametrize("ending", ["tfw", "TFW", "wld", "tifw"])
def test_a_world_file_counts(tmp_path, ending):
    path = write(tmp_path / "a.tif", cube(), transform=None)
    (tmp_path / f"a.{ending}").write_text("30\n0\n0\n-30\n300030\n5799990\n")
    assert grid_of(path).transform == tuple(PLACE)[:6]


def test_a_sidecar_of_another_file_changes_nothing(tmp_path):
    path = write(tmp_path / "a.tif", cube(), crs=None, transform=None)
    (tmp_path / "b.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:32633</SRS></PAMDataset>")
    assert grid_of(path).crs is None


def points(transform):
    places = [(0, 0), (0, 8), (8, 0), (8, 8)]
    return [GroundControlPoint(row, col, *(transform @ (col, row))) for row, col in places]


def test_ground_control_points_on_a_grid_are_its_transform(tmp_path):
    turned = PLACE @ Affine.rotation(20)
    path = write(tmp_path / "a.tif", cube(), transform=None, crs="EPSG:32633", gcps=points(turned))
    assert grid_of(path).crs == "EPSG:32633"
    np.testing.assert_allclose(grid_of(path).transform, tuple(turned)[:6], atol=1e-5)
    tile = read_tile(path, ENMAP)
    assert np.isfinite(tile.center_lonlat()).all()


def test_ground_control_points_that_no_grid_fits_are_kept_apart(tmp_path):
    bent = points(PLACE)
    bent[3].x += 300
    path = write(tmp_path / "a.tif", cube(), transform=None, crs="EPSG:32633", gcps=bent)
    assert grid_of(path).transform is None
    with open_raster(path) as raster:
        assert [point.x for point in raster.control_points()] == [point.x for point in bent]
        assert raster.control_points(4)[3].row == 2


# ---- names ----


def test_a_window_is_read_as_the_whole_is(tmp_path):
    values, shown = half_hidden()
    path = write(tmp_path / "a.tif", values)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(shown)
    with open_raster(path) as raster:
        bands = raster.select(ENMAP)
        window = Window(1, 2, 5, 4)
        np.testing.assert_array_equal(raster.read(bands, window), raster.read(bands)[(slice(None), *window.toslices())])
        np.testing.assert_array_equal(raster.valid(window), raster.valid()[window.toslices()])


@pytest.mark.parametrize("name", ["https://127.0.0.1:9/a.tif", "/vsizip/nowhere.zip/a.tif", "s3:/nowhere", "a.tif"])
def test_what_is_not_there_is_one_line_that_names_it(name):
    with pytest.raises(TileError, match="not a readable raster") as caught, open_raster(name):
        pass
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)
