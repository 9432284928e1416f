"""Labels are read for their image's grid: the same ground, the same orientation, one band of class codes."""

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from support.tiles import GRID, write_tile

from shards.__main__ import main
from shards.errors import TileError
from shards.read.reader import open_dataset
from shards.sensors.sensor import NODATA
from shards.sources.alignment import Orientation, find_orientation
from shards.sources.grid import Grid
from shards.sources.labels import Labels, declared_nodata, read_grid, read_label

PLACE = Affine(30, 0, 300015, 0, -30, 5800005)
IMAGE = Grid(4, 6, "EPSG:32633", tuple(PLACE)[:6])
CODES = np.arange(24).reshape(4, 6) + 1


def _write(path, codes, transform=PLACE, crs="EPSG:32633", **options):
    bands = codes if codes.ndim == 3 else codes[None]
    count, height, width = bands.shape
    told = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype} | options
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", crs=crs, transform=transform, **told) as file:
        file.write(bands)
    return path


def _refused(path, grid=IMAGE, **options) -> str:
    with pytest.raises(TileError) as raised:
        read_label(path, grid, **options)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    return str(raised.value).removeprefix(f"{path}: ")


# ---- codes ----


@pytest.mark.parametrize(
    ("dtype", "codes"),
    [
        ("uint8", [0, 6, 254, 255]),
        ("int16", [-1, 0, 3, 32767]),
        ("uint32", [0, 1, 2**31, 2**32 - 1]),
        ("int64", [-(2**40), 0, 5, 2**40]),
        ("float32", [0, 1, 6, 255]),
        ("float64", [-1, 0, 6, 2**40]),
    ],
)
def test_codes_of_any_stored_type_are_read_as_int64(tmp_path, dtype, codes):
    codes = np.array(codes).reshape(2, 2)
    read = read_label(write_tile(tmp_path / "a.tif", codes.astype(dtype)))
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, codes)


@pytest.mark.parametrize(
    ("dtype", "none", "declared"),
    [
        ("uint8", 255, 255),
        ("int16", -1, -1),
        ("int32", -(2**31), -(2**31)),
        ("float32", np.nan, np.nan),
        ("float32", np.nan, None),
        ("float32", np.finfo(np.float32).min, float(np.finfo(np.float32).min)),
        ("float32", np.finfo(np.float32).min, None),
        ("float64", -3.4028234663852886e38, -3.4028234663852886e38),
    ],
)
def test_what_a_file_declares_to_be_no_label_never_counts(tmp_path, dtype, none, declared):
    codes = np.array([[1, none], [2, 3]], dtype)
    assert read_label(write_tile(tmp_path / "a.tif", codes, nodata=declared)).tolist() == [[1, NODATA], [2, 3]]


@pytest.mark.parametrize("how", ["mask", "alpha", "sidecar"])
def test_masks_alpha_and_sidecars_say_that_there_is_no_label(tmp_path, how):
    path, shown = tmp_path / "a.tif", np.array([[255, 0], [255, 255]], np.uint8)
    codes = np.array([[1, 7], [2, 3]], np.uint8)
    if how == "alpha":
        _write(path, np.stack([codes, shown]), photometric="MINISBLACK", alpha="YES")
    else:
        _write(path, codes)
    if how == "mask":
        with rasterio.open(path, "r+") as file:
            file.write_mask(shown)
    if how == "sidecar":
        band = '<PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand>'
        path.with_name("a.tif.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    assert read_label(path).tolist() == [[1, NODATA], [2, 3]]


@pytest.mark.parametrize("value", [0.5, np.inf, 1e19])
def test_values_that_are_no_codes_are_named_with_their_place(tmp_path, value):
    path = write_tile(tmp_path / "a.tif", np.array([[1, 2], [value, 3]], np.float64))
    assert _refused(path, None) == f"value {value} at row 1, column 0: class codes are whole numbers"


def test_one_band_of_a_palette_is_read_as_codes(tmp_path):
    path = _write(tmp_path / "a.tif", CODES.astype(np.uint8), photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {1: (255, 0, 0, 255), 2: (0, 255, 0, 255)})
        assert file.colorinterp == (ColorInterp.palette,)
    np.testing.assert_array_equal(read_label(path, IMAGE), CODES)


@pytest.mark.parametrize(
    ("count", "options", "told"),
    [
        (2, {}, "2 bands, one per class (one-hot): "),
        (3, {"photometric": "RGB"}, "3 bands, an RGB picture of classes"),
        (4, {"photometric": "RGB", "alpha": "YES"}, "3 bands, an RGB picture of classes"),
        (7, {}, "7 bands, one per class (one-hot): "),
    ],
)
def test_one_hot_and_colored_labels_are_refused_by_name(tmp_path, count, options, told):
    path = _write(tmp_path / "a.tif", np.ones((count, 4, 6), np.uint8), **options)
    assert _refused(path).startswith(told)
    assert _refused(path).endswith("give one band of class codes")


@pytest.mark.parametrize("content", [None, b"", b"no label\n"])
def test_an_unreadable_label_is_one_line(tmp_path, content):
    path = tmp_path / "a.tif"
    if content is not None:
        path.write_bytes(content)
    assert "not a readable raster" in _refused(path)


def test_an_envi_label_is_read(tmp_path):
    path = _write(tmp_path / "a.dat", CODES.astype(np.uint8), driver="ENVI")
    np.testing.assert_array_equal(read_label(path, IMAGE), CODES)


def test_the_declared_value_is_told_where_it_could_be_a_class(tmp_path):
    assert declared_nodata(write_tile(tmp_path / "a.tif", CODES.astype(np.uint8), nodata=2)) == 2
    assert declared_nodata(write_tile(tmp_path / "b.tif", CODES.astype(np.uint8))) is None
    assert declared_nodata(write_tile(tmp_path / "c.tif", CODES.astype(np.float32), nodata=np.nan)) is None


def test_real_labels_have_the_seven_codes(enmap_potsdam):
    codes = set()
    for path in (enmap_potsdam / "labels").glob("*.tif"):
        codes |= set(np.unique(read_label(path, read_grid(enmap_potsdam / "images" / path.name))).tolist())
    assert codes == set(range(7))


# ---- place and orientation ----


def _turned(grid: Grid, transpose: bool, flip_rows: bool, flip_columns: bool) -> Grid:
    """The same pixels, stored in another order."""
    height, width = grid.shape[::-1] if transpose else grid.shape
    to_grid = Affine.scale(-1 if flip_columns else 1, -1 if flip_rows else 1)
    to_grid = Affine.translation(grid.width * flip_columns, grid.height * flip_rows) @ to_grid
    if transpose:
        to_grid = to_grid @ Affine(0, 1, 0, 1, 0, 0)
    return Grid(height, width, grid.crs, tuple(Affine(*grid.transform) @ to_grid)[:6])


@given(
    transpose=st.booleans(),
    flip_rows=st.booleans(),
    flip_columns=st.booleans(),
    angle=st.floats(-180, 180),
    pixel=st.floats(0.5, 100),
    shift=st.floats(-0.04, 0.04),
)
@settings(max_examples=60, deadline=None)
def test_the_eight_orientations_of_any_grid_are_found(transpose, flip_rows, flip_columns, angle, pixel, shift):
    affine = Affine.translation(4e5, 5e6) @ Affine.rotation(angle) @ Affine.scale(pixel, -pixel)
    image = Grid(4, 6, "EPSG:32633", tuple(affine)[:6])
    moved = Grid(4, 6, "EPSG:32633", tuple(affine @ Affine.translation(shift, shift))[:6])
    label = _turned(moved, transpose, flip_rows, flip_columns)
    stored = CODES[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    np.testing.assert_array_equal(find_orientation(label, image).apply(stored.T if transpose else stored), CODES)


def test_a_label_stored_from_the_south_is_turned(tmp_path):
    path = _write(tmp_path / "a.tif", CODES[::-1].astype(np.uint8), Affine(30, 0, 300015, 0, 30, 5800005 - 4 * 30))
    np.testing.assert_array_equal(read_label(path, IMAGE), CODES)
    assert read_label(path).tolist() == CODES[::-1].tolist()


@pytest.mark.parametrize("crs", ["EPSG:32633+5773", "EPSG:25833", "+proj=utm +zone=33 +datum=WGS84 +units=m"])
def test_other_names_of_the_same_ground_are_the_same(tmp_path, crs):
    path = _write(tmp_path / "a.tif", CODES.astype(np.uint8), crs=crs)
    np.testing.assert_array_equal(read_label(path, IMAGE), CODES)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("placed", [False, True])
def test_without_a_georeference_on_one_side_only_sizes_count(tmp_path, placed):
    georeference = {"crs": "EPSG:32633", "transform": PLACE} if placed else {"crs": None, "transform": None}
    path = _write(tmp_path / "a.tif", CODES.astype(np.uint8), **georeference)
    image = Grid(4, 6) if placed else IMAGE
    np.testing.assert_array_equal(read_label(path, image), CODES)
    told = _refused(_write(tmp_path / "b.tif", CODES[:3].astype(np.uint8), **georeference), image, align="nearest")
    assert told == "labels of 3x6 px, image of 4x6 px"


def test_pixel_coordinates_without_a_crs_are_no_georeference():
    assert find_orientation(Grid(4, 6, None, (1, 0, 0, 0, -1, 4)), IMAGE) == Orientation()


@pytest.mark.parametrize(
    ("crs", "transform", "told"),
    [
        ("EPSG:32632", Affine(30, 0, 700015, 0, -30, 5300005), "the labels are elsewhere: their center is 5"),
        (
            "EPSG:32633",
            Affine(30, 0, 300015 + 6 * 30, 0, -30, 5800005),
            "the labels are elsewhere: their center is 179 m away",
        ),
        (None, Affine(30, 0, 15, 0, -30, 5), "the labels are elsewhere: their center is"),
        ("EPSG:32632", Affine(30, 0, 708984, 0, -30, 5800378), "labels in EPSG:32632, image in EPSG:32633"),
        ("EPSG:32633", Affine(10, 0, 300015, 0, -10, 5800005), "label pixels of 0.3333 x 0.3333 image pixels"),
        ("EPSG:32633", Affine(60, 0, 300015, 0, -60, 5800005), "label pixels of 2 x 2 image pixels"),
        ("EPSG:32633", PLACE @ Affine.rotation(5), "labels rotated by 5 degrees relative to the image"),
        ("EPSG:32633", PLACE @ Affine.translation(0.4, 0), "labels shifted by +0.40 columns and +0.00 rows"),
        ("EPSG:32633", PLACE @ Affine.translation(0, -1), "labels shifted by +0.00 columns and -1.00 rows"),
    ],
)
def test_labels_of_other_pixels_are_refused_with_what_differs(tmp_path, crs, transform, told):
    path = _write(tmp_path / "a.tif", CODES.astype(np.uint8), transform, crs)
    assert _refused(path).startswith(told)
    advised = "resample them with --align nearest (data.align=nearest)"
    if "elsewhere" in told:
        assert _refused(path, align="nearest").startswith(told)
        assert advised not in _refused(path)
    else:
        assert _refused(path).endswith(advised)
        assert read_label(path, IMAGE, "nearest").shape == IMAGE.shape


def test_a_larger_label_on_the_same_grid_is_cut_where_it_is_aligned(tmp_path):
    mosaic = np.arange(30 * 40).reshape(30, 40)
    path = _write(tmp_path / "a.tif", mosaic.astype(np.int32), PLACE @ Affine.translation(-10, -20), tiled=True)
    assert _refused(path).startswith("labels of 30x40 px, image of 4x6 px")
    np.testing.assert_array_equal(read_label(path, IMAGE, "nearest"), mosaic[20:24, 10:16])


def test_finer_and_coarser_labels_are_brought_to_the_image(tmp_path):
    finer = np.kron(CODES, np.ones((3, 3), int))
    path = _write(tmp_path / "a.tif", finer.astype(np.uint8), PLACE @ Affine.scale(1 / 3))
    np.testing.assert_array_equal(read_label(path, IMAGE, "nearest"), CODES)
    path = _write(tmp_path / "b.tif", CODES.astype(np.uint8), PLACE @ Affine.scale(2))
    np.testing.assert_array_equal(read_label(path, IMAGE, "nearest"), np.kron(CODES[:2, :3], np.ones((2, 2), int)))


def test_pixels_that_an_aligned_label_does_not_cover_do_not_count(tmp_path):
    codes = CODES.astype(np.int32)
    codes[0, 0] = 2**30  # beyond what a float32 holds
    codes[1, 1] = 9999
    path = _write(tmp_path / "a.tif", codes, PLACE @ Affine.translation(2, 1), nodata=9999)
    expected = np.full((4, 6), NODATA)
    expected[1:, 2:] = codes[:3, :4]
    expected[2, 3] = NODATA
    np.testing.assert_array_equal(read_label(path, IMAGE, "nearest"), expected)


LOCAL = 'LOCAL_CS["site",UNIT["meter",1]]'


@pytest.mark.parametrize("crs", [None, LOCAL])
def test_grids_without_a_place_on_earth_are_compared_and_aligned(tmp_path, crs):
    image = Grid(4, 6, crs, tuple(PLACE)[:6])
    path = _write(tmp_path / "a.tif", CODES.astype(np.uint8), PLACE @ Affine.translation(1, 0), crs)
    assert _refused(path, image).startswith("labels shifted by +1.00 columns and +0.00 rows")
    assert read_label(path, image, "nearest")[:, 1:].tolist() == CODES[:, :-1].tolist()
    path = _write(tmp_path / "b.tif", CODES.astype(np.uint8), PLACE @ Affine.translation(10, 0), crs)
    assert _refused(path, image).startswith("the labels are elsewhere: their center is 300 units away; give the label")


def test_a_label_in_the_wrong_zone_is_told(tmp_path):
    told = _refused(_write(tmp_path / "a.tif", CODES.astype(np.uint8), crs="EPSG:32632"))
    assert " km away (labels in EPSG:32632, image in EPSG:32633); give the label of this image" in told


def test_a_label_in_another_crs_is_warped(tmp_path):
    """Halves of the tile, told in degrees: the boundary stays within a pixel."""
    image = Grid(32, 32, "EPSG:32633", tuple(PLACE)[:6])
    left, bottom, right, top = rasterio.warp.transform_bounds(
        "EPSG:32633", "EPSG:4326", 300015, 5800005 - 960, 300015 + 960, 5800005
    )
    fine = np.repeat([[1] * 200 + [2] * 200], 400, 0)
    degrees = Affine((right - left) / 400, 0, left, 0, -(top - bottom) / 400, top)
    read = read_label(_write(tmp_path / "a.tif", fine.astype(np.uint8), degrees, "EPSG:4326"), image, "nearest")
    assert (read[:, :14] == 1).all() and (read[:, 18:] == 2).all()


def test_one_raster_can_hold_the_labels_of_all_images(tmp_path):
    path = _write(tmp_path / "map.tif", np.kron(CODES, np.ones((2, 2), int)).astype(np.uint8))
    labels = Labels(path, align="nearest")
    assert labels.one_file and not labels.is_vector
    second = Grid(4, 6, "EPSG:32633", tuple(PLACE @ Affine.translation(6, 4))[:6])
    np.testing.assert_array_equal(labels.read("", second), np.kron(CODES, np.ones((2, 2), int))[4:8, 6:12])


def test_pack_begins_nothing_where_labels_do_not_fit_and_its_advice_works(tmp_path, capsys):
    for number in range(5):
        write_tile(tmp_path / "images" / f"t{number}.tif", np.full((202, 8, 8), number, np.int16))
        finer = np.kron(np.arange(64).reshape(8, 8), np.ones((3, 3), int)).astype(np.uint8)
        _write(tmp_path / "labels" / f"t{number}.tif", finer, GRID @ Affine.scale(1 / 3))
    words = ["pack", str(tmp_path / "images"), str(tmp_path / "shards"), "--workers", "1"]
    words += ["--labels", str(tmp_path / "labels")]
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.endswith(
        "t0.tif: label pixels of 0.3333 x 0.3333 image pixels: resample them with --align nearest (data.align=nearest)"
    )
    assert not (tmp_path / "shards").exists()
    assert main([*words, "--align", "nearest"]) == 0
    assert open_dataset(tmp_path / "shards").mask(0).tolist() == np.arange(64).reshape(8, 8).tolist()
    assert main(["verify", str(tmp_path / "shards"), "--labels", str(tmp_path / "labels"), "--workers", "1"]) == 0
    assert main(words) == 2
    assert "was packed with other options (align: nearest then, None now)" in capsys.readouterr().err


@pytest.mark.parametrize("codes", [[1, 40000, 3], [NODATA - 1, 40000, 3]])
def test_codes_beyond_what_shards_hold_are_named(tmp_path, codes, capsys):
    for number in range(3):
        write_tile(tmp_path / "images" / f"t{number}.tif", np.full((202, 3, 3), number, np.int16))
        write_tile(tmp_path / "labels" / f"t{number}.tif", np.repeat([codes], 3, 0).astype(np.int32), nodata=3)
    words = ["pack", str(tmp_path / "images"), str(tmp_path / "shards"), "--labels", str(tmp_path / "labels")]
    assert main([*words, "--workers", "1"]) == 2
    wrong = codes[0] if codes[0] < 0 else codes[1]
    assert f"t0.tif: label code {wrong} doesn't fit int16: renumber it" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--align", "nearest"], ["--label-field", "crop"]])
def test_options_of_labels_without_labels_are_misuse(tmp_path, capsys, option):
    write_tile(tmp_path / "images" / "a.tif", np.ones((202, 8, 8), np.int16))
    assert main(["pack", str(tmp_path / "images"), str(tmp_path / "shards"), *option]) == 2
    assert "set how labels are read: give --labels, too" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(6, 6), (8, 6), (16, 16), (6, 8)])
def test_a_label_that_begins_where_its_image_does_but_is_of_another_size_is_refused(size):
    place = (30.0, 0.0, 300015.0, 0.0, -30.0, 5800005.0)
    image = Grid(8, 8, "EPSG:32633", place)
    with pytest.raises(TileError, match=f"labels of {size[0]}x{size[1]} px, image of 8x8 px: resample them"):
        find_orientation(Grid(*size, "EPSG:32633", place), image)
