"""Polygons as labels: burned onto an image's grid, from the formats and attributes that people have."""

import json

import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from support.tiles import write_tile

from shards.__main__ import main
from shards.errors import SourceError, TileError
from shards.read.reader import open_dataset
from shards.sensors.sensor import NODATA
from shards.sources.grid import Grid
from shards.sources.labels import Labels
from shards.sources.vectors import burn, check_overlap, open_layer

LEFT, TOP = 366015.0, 5809965.0  # as support.tiles places its tiles
GRID = Grid(8, 8, "EPSG:32633", (30, 0, LEFT, 0, -30, TOP))


def _box(column, row, width, height):
    """A rectangle of pixels."""
    return shapely.box(LEFT + 30 * column, TOP - 30 * (row + height), LEFT + 30 * (column + width), TOP - 30 * row)


def _write(path, geometry, values, field="crop", crs="EPSG:32633", layer=None):
    geometry = np.array(geometry, dtype=object)
    if crs == "EPSG:4326":

        def move(points):
            return np.stack(transform_points("EPSG:32633", crs, *points.T), -1)

        geometry = shapely.transform(shapely.segmentize(geometry, 30), move)
    pyogrio.raw.write(
        path,
        shapely.to_wkb(geometry),
        [np.asarray(values)],
        [field],
        geometry_type="Unknown" if path.suffix != ".shp" else "Polygon",
        crs=crs,
        layer=layer,
        append=path.exists(),
    )
    return path


def _burned(path, names=None, unnamed=None, field="crop", layer=None):
    return burn(open_layer(path, field, layer), GRID, names or {}, unnamed)


HALVES = np.full((8, 8), NODATA)
HALVES[:, :3], HALVES[2:5, 5:] = 7, 9


@pytest.mark.parametrize(
    ("name", "crs"),
    [(f"a.{ending}", crs) for ending in ("gpkg", "shp", "fgb") for crs in ("EPSG:32633", "EPSG:4326")]
    + [("a.geojson", "EPSG:4326"), ("a.json", "EPSG:4326")],
)
def test_polygons_of_any_format_and_crs_are_burned(tmp_path, name, crs):
    path = tmp_path / name
    if name == "a.json":
        path = _write(tmp_path / "a.geojson", [_box(0, 0, 3, 8), _box(5, 2, 3, 3)], [7, 9], crs=crs).rename(path)
    else:
        _write(path, [_box(0, 0, 3, 8), _box(5, 2, 3, 3)], [7, 9], crs=crs)
    np.testing.assert_array_equal(_burned(path), HALVES)


def test_geojson_without_a_crs_is_in_degrees(tmp_path):
    path = _write(tmp_path / "a.geojson", [_box(0, 0, 3, 8), _box(5, 2, 3, 3)], [7, 9], crs="EPSG:4326")
    document = json.loads(path.read_text())
    document.pop("crs", None)
    path.write_text(json.dumps(document))
    np.testing.assert_array_equal(_burned(path), HALVES)


def test_where_polygons_overlap_the_last_one_counts(tmp_path):
    boxes, codes = [_box(0, 0, 6, 8), _box(2, 0, 6, 8), _box(3, 0, 1, 8)], [1, 2, 3]
    for number, order in enumerate(([0, 1, 2], [2, 1, 0])):
        for ending in ("gpkg", "geojson"):
            path = _write(
                tmp_path / f"{number}.{ending}",
                [boxes[one] for one in order],
                [codes[one] for one in order],
                crs="EPSG:4326" if ending == "geojson" else "EPSG:32633",
            )
            assert _burned(path)[0].tolist() == ([1, 1, 2, 3, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 2, 2])[number]


def test_only_pixels_whose_center_is_covered_count(tmp_path):
    path = _write(tmp_path / "a.gpkg", [_box(0, 0, 2.4, 8), _box(4.4, 0, 3.6, 8)], [1, 2])
    assert _burned(path)[0].tolist() == [1, 1, NODATA, NODATA, 2, 2, 2, 2]


def test_crossing_missing_and_unlabeled_features_do_no_harm(tmp_path):
    bow = shapely.Polygon([(LEFT, TOP), (LEFT + 240, TOP - 240), (LEFT + 240, TOP), (LEFT, TOP - 240)])
    assert not bow.is_valid
    path = _write(tmp_path / "a.gpkg", [bow, None, shapely.Polygon(), _box(3, 7, 2, 1)], [1.0, 2.0, 3.0, np.nan])
    codes = _burned(path)
    assert codes[4, 0] == 1 and codes[4, 7] == 1  # the bow's two wings
    assert (codes[7, 3:5] == NODATA).all()
    assert set(np.unique(codes)) == {1, NODATA}


def test_names_of_classes_are_codes_by_the_task(tmp_path):
    boxes, texts = (
        [_box(0, 0, 3, 8), _box(5, 2, 3, 3), _box(3, 0, 2, 8), _box(3, 0, 2, 8)],
        ["Winter Wheat ", "9", " ", None],
    )
    path = _write(tmp_path / "a.gpkg", boxes, np.array(texts, dtype=object))
    np.testing.assert_array_equal(_burned(path, {"winter wheat": 7}), HALVES)
    with pytest.raises(SourceError, match=r"'Winter Wheat ' in field 'crop' is not one of barley"):
        _burned(path, {"barley": 1})
    with pytest.raises(SourceError, match=r"'Winter Wheat ' in field 'crop' is text: give a field of numbers"):
        _burned(path)
    assert set(np.unique(_burned(path, {"barley": 1}, unnamed=NODATA))) == {9, NODATA}


def test_codes_beyond_int32_come_through(tmp_path):
    path = _write(tmp_path / "a.gpkg", [_box(0, 0, 8, 8)], ["3301090205"])
    assert (_burned(path) == 3301090205).all()


def test_codes_that_are_no_whole_numbers_are_refused(tmp_path):
    path = _write(tmp_path / "a.gpkg", [_box(0, 0, 8, 8)], [1.5])
    with pytest.raises(SourceError, match=r"a\.gpkg: 1\.5 in field 'crop': class codes are whole numbers"):
        _burned(path)


def test_what_is_wrong_with_the_file_is_one_line(tmp_path):
    def told(path, field="crop", layer=None) -> str:
        with pytest.raises(SourceError) as raised:
            open_layer(path, field, layer)
        assert "\n" not in str(raised.value)
        return str(raised.value).removeprefix(f"{path}: ")

    path = _write(tmp_path / "a.gpkg", [_box(0, 0, 8, 8)], [1], field="Crop_Code")
    assert told(path, "crop_cod") == "no field 'crop_cod': did you mean Crop_Code?"
    assert told(path, "xyz") == "no field 'xyz': its fields are Crop_Code"
    assert told(path, None) == "choose the field that holds the class with --label-field (data.label_field): Crop_Code"
    assert told(path, "Crop_Code", "b") == "no layer b: a"
    _write(path, [_box(0, 0, 8, 8)], [1], layer="b")
    assert told(path).startswith("several layers (a, b): name one with --label-layer")
    assert open_layer(path, "crop", "b").name == "b"
    bare = _write(tmp_path / "bare.shp", [_box(0, 0, 8, 8)], [1])
    bare.with_suffix(".prj").unlink()
    assert told(bare).startswith("no coordinate reference system")
    assert told(tmp_path / "none.gpkg") == "no such file of labels"
    (tmp_path / "text.gpkg").write_text("no polygons")
    assert told(tmp_path / "text.gpkg").startswith("neither polygons nor a label raster")


def test_images_need_a_georeference(tmp_path):
    labels = Labels(_write(tmp_path / "a.gpkg", [_box(0, 0, 8, 8)], [1]), field="crop")
    with pytest.raises(TileError, match="the image has no georeference"):
        labels.read("", Grid(8, 8))
    with pytest.raises(SourceError, match="none of 2 images has a georeference"):
        check_overlap(open_layer(labels.path, "crop"), [Grid(8, 8), Grid(8, 8)])


def test_polygons_that_touch_no_image_are_an_error(tmp_path):
    layer = open_layer(_write(tmp_path / "a.gpkg", [_box(0, 0, 8, 8)], [1]), "crop")
    far = Grid(8, 8, "EPSG:32633", tuple(Affine(*GRID.transform) @ Affine.translation(100, 0))[:6])
    with pytest.raises(SourceError, match=r"its polygons \(x .* in EPSG:32633\) touch none of 2 images"):
        check_overlap(layer, [far, far])
    check_overlap(layer, [far, GRID])


def test_pack_and_verify_burn_the_same(tmp_path, capsys):
    for number in range(5):
        values = np.full((202, 8, 8), 100 + number, np.int16)
        write_tile(tmp_path / "images" / f"t{number}.tif", values)
    polygons = _write(tmp_path / "fields.gpkg", [_box(0, 0, 3, 8), _box(5, 2, 3, 3)], [7, 9])
    words = [str(tmp_path / "images"), str(tmp_path / "shards"), "--workers", "1", "--labels", str(polygons)]
    assert main(["pack", *words]) == 2
    assert (
        "choose the field that holds the class with --label-field (data.label_field): crop" in capsys.readouterr().err
    )
    assert main(["pack", *words, "--label-field", "crop"]) == 0
    np.testing.assert_array_equal(open_dataset(tmp_path / "shards").mask(0), HALVES)
    check = ["verify", str(tmp_path / "shards"), "--labels", str(polygons), "--workers", "1"]
    assert main(check) == 0
    polygons.unlink()
    _write(polygons, [_box(0, 0, 3, 8)], [7])
    open_layer.cache_clear()
    assert main(check) == 1
    assert "differs from its source" in capsys.readouterr().err
