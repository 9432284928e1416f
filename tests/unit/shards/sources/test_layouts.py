"""Directories of tiles, archives and products: what is found, under which keys, and what may not be overlooked."""

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.deliveries import touch
from support.tiles import ARCHIVE, archive_names

from shards.errors import SourceError
from shards.sources.layouts import distinct_keys, find_tiles
from shards.sources.tile_names import SourceTile, tile_of_name


@pytest.mark.parametrize("prefix", ["", "enmap/"])
def test_spectralearth_layout_is_found_in_the_folder_and_one_below(tmp_path, prefix):
    touch(tmp_path, *archive_names(prefix))
    tiles = find_tiles(tmp_path, "enmap")
    expected = [(place, scene, f"{prefix}{place}/{scene}.tif") for place in ARCHIVE for scene in ARCHIVE[place]]
    assert tiles == [SourceTile(*row) for row in sorted(expected)]
    assert tiles[0].key == "0000017_00003"


@pytest.mark.parametrize("labels", ["cdl/", "aaa/", "zzz/"])
def test_label_tiles_of_the_same_names_stay_out(tmp_path, labels):
    touch(tmp_path, *archive_names("enmap/"), *archive_names(labels))
    tiles = find_tiles(tmp_path, "enmap")
    assert sorted(tile.path for tile in tiles) == sorted(archive_names("enmap/"))


def test_other_files_in_an_archive_are_no_tiles(tmp_path):
    touch(tmp_path, "0000017/00003.tif", "0000017/00003.tif.aux.xml", "0000017/readme.txt", "splits/train.txt")
    assert [tile.path for tile in find_tiles(tmp_path, "enmap")] == ["0000017/00003.tif"]


def test_images_beside_labels_are_the_tiles(tmp_path):
    touch(tmp_path, "images/a_1.tif", "images/b/c.tiff", "labels/a_1.tif", "labels/b/c.tiff", "mosaic.tif")
    tiles = find_tiles(tmp_path, "enmap")
    assert [(tile.key, tile.path) for tile in tiles] == [
        ("a-1_00000", "images/a_1.tif"),
        ("b-c_00000", "images/b/c.tiff"),
    ]


def test_in_any_other_tree_each_file_is_a_location(tmp_path):
    touch(tmp_path, "2022/north/x.tif", "2022/south/x.TIF", "y.tiff", "notes.txt")
    tiles = find_tiles(tmp_path, "enmap")
    assert [(tile.location, tile.timestamp, tile.path) for tile in tiles] == [
        ("2022-north-x", "00000", "2022/north/x.tif"),
        ("2022-south-x", "00000", "2022/south/x.TIF"),
        ("y", "00000", "y.tiff"),
    ]


@pytest.mark.parametrize("name", ["a.b.c.tif", "Tile (1).TIF", "Zürich à 10%.tif", "日本.tif", "-_-.tif"])
def test_keys_are_safe_in_a_webdataset_tar(tmp_path, name):
    touch(tmp_path, f"dir.v1/{name}", name)
    keys = [tile.key for tile in find_tiles(tmp_path, "enmap")]
    assert len(set(keys)) == 2
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)


def _keys(folder):
    return {tile.path: tile.key for tile in find_tiles(folder, "enmap")}


@pytest.mark.parametrize(
    "names",
    [
        ("上海.tif", "北京.tif"),
        ("a b.tif", "a-b.tif", "a_b.tif", "a/b.tif", "a--b.tif"),
        ("a.tif", "a.tiff", "A.tif"),
        ("Zürich.tif", "Z-rich.tif", "Zrich.tif", "Zu\u0308rich.tif", "Zurich.tif"),
        ("-.tif", "_.tif", "€.tif", "€€.tif"),
        ("x/上海/1.tif", "x/北京/1.tif"),
        ("scene.v1.tif", "scene.v1.tiff", "scene-v1.tif"),
    ],
)
def test_names_that_differ_only_in_what_a_key_cannot_hold_have_keys_of_their_own(tmp_path, names):
    touch(tmp_path, *names)
    keys = _keys(tmp_path)
    assert keys.keys() == set(names) and len(set(keys.values())) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys.values())


@pytest.mark.parametrize(
    ("name", "key"),
    [("a b.tif", "a-b_00000"), ("2022/north_1.tif", "2022-north-1_00000"), ("dir.v1/a.b.tif", "dir-v1-a-b_00000")],
)
def test_a_name_in_ascii_alone_has_the_key_that_it_always_had(tmp_path, name, key):
    touch(tmp_path, name)
    assert _keys(tmp_path) == {name: key}


def test_of_names_that_collide_the_one_spelled_like_its_key_has_it_whatever_else_is_there(tmp_path):
    touch(tmp_path, "a b.tif", "a-b.tif")
    few = _keys(tmp_path)
    touch(tmp_path, "a_b.tif")
    assert few.items() <= _keys(tmp_path).items() and few["a-b.tif"] == "a-b_00000"


def test_a_name_in_another_script_has_the_same_key_whatever_else_is_there(tmp_path):
    touch(tmp_path, "上海.tif")
    (key,) = _keys(tmp_path).values()
    touch(tmp_path, "北京.tif", "上海.tiff")
    assert _keys(tmp_path)["上海.tif"] == key


def test_a_key_that_was_given_before_stays_with_its_file(tmp_path):
    touch(tmp_path, "a_b.tif", "a-b.tif")
    tiles = find_tiles(tmp_path, "enmap", taken={"a-b_00000": "a_b.tif"})
    assert {tile.path: tile.key for tile in tiles}["a_b.tif"] == "a-b_00000"


@settings(max_examples=200)
@given(st.sets(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=6), max_size=8))
def test_no_two_names_ever_share_a_key(names):
    tiles = [tile_of_name(f"{unicodedata.normalize('NFC', name)}.tif", "enmap") for name in names]
    tiles = distinct_keys({tile.path: tile for tile in tiles if tile}.values(), Path("source"), {})
    assert len({tile.key for tile in tiles}) == len(tiles)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", tile.key) and not tile.key.startswith("_") for tile in tiles)


@pytest.mark.parametrize(
    "names", [("0000017/00003.tif", "0000017/00003.TIF"), ("2022/0000017/00003.tif", "2023/0000017/00003.tif")]
)
def test_two_files_of_one_acquisition_of_one_place_are_refused_and_named(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(SourceError, match="remove one") as caught:
        find_tiles(tmp_path, "enmap")
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("enmap/notes.txt", "cdl/0000017/00003.tif")])
def test_a_folder_without_tiles_is_refused(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(SourceError, match="no GeoTIFF tiles") as caught:
        find_tiles(tmp_path, "enmap")
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no such directory") as caught:
        find_tiles(tmp_path / "absent", "enmap")
    assert str(tmp_path / "absent") in str(caught.value)


def test_real_folders_are_understood(spectral_earth_sample, enmap_potsdam):
    earth = find_tiles(spectral_earth_sample, "enmap")
    assert (len(earth), len({tile.location for tile in earth})) == (10, 7)
    potsdam = find_tiles(enmap_potsdam, "enmap")
    assert (len(potsdam), {tile.path.split("/")[0] for tile in potsdam}) == (18, {"images"})


# ---- patterns ----


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.tif", {"a.tif"}),
        ("*/*.tif", {"b/a.tif", "0000017/00001.tif"}),
        ("**/*.tif", {"a.tif", "b/a.tif", "b/c/d/a.tif", "0000017/00001.tif"}),
        ("b/**/*.tif", {"b/a.tif", "b/c/d/a.tif"}),
        ("b/**", {"b/a.tif", "b/c/d/a.tif", "b/c/notes.txt"}),
        ("**/c/**/a.tif", {"b/c/d/a.tif"}),
        ("?.tif", {"a.tif"}),
        ("[!b]/*.tif", set()),
        ("b/[ab].tif", {"b/a.tif"}),
        ("*.TIF", set()),
    ],
)
def test_a_pattern_is_a_shell_pattern_relative_to_the_source(tmp_path, pattern, found):
    touch(tmp_path, "a.tif", "b/a.tif", "b/c/d/a.tif", "b/c/notes.txt", "0000017/00001.tif")
    if found:
        assert {tile.path for tile in find_tiles(tmp_path, "enmap", pattern)} == found
    else:
        with pytest.raises(SourceError, match="expected files like") as caught:
            find_tiles(tmp_path, "enmap", pattern)
        assert pattern in str(caught.value)


# ---- names of EnMAP products ----

PRODUCT = "ENMAP01-____L2A-DT0000004950_20221103T162438Z_001_V010110_20221118T145147Z"


def test_hyspecnet_patches_are_places_and_their_quality_layers_no_tiles(tmp_path):
    for patch in ("Y01460273_X05670694", "Y01460273_X06950822"):
        name = f"{PRODUCT}-{patch}"
        kinds = ("SPECTRAL_IMAGE", "QL_PIXELMASK", "QL_QUALITY_CLOUD", "QL_VNIR")
        touch(tmp_path, *(f"patches/{PRODUCT}/{name}/{name}-{kind}.TIF" for kind in kinds))
    tiles = find_tiles(tmp_path, "enmap")
    assert [tile.location for tile in tiles] == [
        "DT0000004950-001-Y01460273-X05670694",
        "DT0000004950-001-Y01460273-X06950822",
    ]
    assert {(tile.timestamp, tile.scene, tile.date) for tile in tiles} == {("20221103T162438Z", PRODUCT, "2022-11-03")}
    assert tiles == find_tiles(tmp_path, "enmap", "**/*.TIF")


def test_quality_layers_of_patches_under_other_names_are_no_tiles(tmp_path):
    patch = "patches/tile_001/tile_001-patch_01/tile_001-patch_01"
    touch(tmp_path, f"{patch}-SPECTRAL_IMAGE.TIF", f"{patch}-QL_QUALITY_CLOUD.TIF", f"{patch}-QL_SWIR.TIF")
    assert [tile.path for tile in find_tiles(tmp_path, "enmap")] == [f"{patch}-SPECTRAL_IMAGE.TIF"]


def test_cuts_of_a_product_under_names_of_their_own_are_places_too(tmp_path):
    names = [f"{PRODUCT}-tile_3.tif", f"{PRODUCT}-tile_4.tif", f"{PRODUCT}-SPECTRAL_IMAGE_x3.tif"]
    touch(tmp_path, *names, f"{PRODUCT}-QL_QUALITY_CLOUD.TIF")
    tiles = find_tiles(tmp_path, "enmap")
    assert {tile.path for tile in tiles} == set(names) and len({tile.location for tile in tiles}) == 3
    assert {(tile.scene, tile.date) for tile in tiles} == {(PRODUCT, "2022-11-03")}
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", tile.key) for tile in tiles)


def test_published_hyspecnet_folder_is_understood(request):
    from conftest import _folder

    tiles = find_tiles(_folder("layouts") / "hyspecnet" / "hyspecnet-11k", "enmap")
    assert [tile.key for tile in tiles] == [
        "DT0000004950-001-Y01460273-X05670694_20221103T162438Z",
        "DT0000004950-001-Y01460273-X06950822_20221103T162438Z",
    ]


# ---- what is no data, and links ----


def _paths(folder, pattern=None):
    return [tile.path for tile in find_tiles(folder, "enmap", pattern)]


@pytest.mark.parametrize(
    "junk",
    ["._a.tif", ".a.tif", ".ipynb_checkpoints/a.tif", ".snapshot/daily.0/a.tif", "__MACOSX/a.tif", "b/@eaDir/a.tif"]
    + [f"{name}/a.tif" for name in ("lost+found", "$RECYCLE.BIN", "System Volume Information", ".Trash-1000/files")],
)
@pytest.mark.parametrize("pattern", [None, "**/*.tif"])
def test_files_of_systems_and_hidden_ones_are_no_data(tmp_path, junk, pattern):
    touch(tmp_path, "v1/a.tif", junk)
    assert _paths(tmp_path, pattern) == ["v1/a.tif"]


def test_a_source_below_a_hidden_folder_is_one(tmp_path):
    touch(tmp_path, ".cache/tiles/a.tif")
    assert _paths(tmp_path / ".cache/tiles") == ["a.tif"]


def _link(folder, name, target):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(target)


@pytest.mark.parametrize(
    ("links", "found"),
    [
        ({"latest": "v1"}, ["v1/a.tif"]),
        ({"a.tif": "v1/a.tif", "b.tif": "v1/a.tif"}, ["v1/a.tif"]),
        ({"loop": "."}, ["v1/a.tif"]),
        ({"v1/up": "..", "w/down": "../v1"}, ["v1/a.tif"]),
        ({"one": "two", "two": "one"}, ["v1/a.tif"]),
        ({"out": "../elsewhere"}, ["out/b.tif", "v1/a.tif"]),
        ({"o1": "../elsewhere", "o2": "../elsewhere", "o3/b.tif": "../../elsewhere/b.tif"}, ["o1/b.tif", "v1/a.tif"]),
        ({"c.tif": "blobs/1234"}, ["c.tif", "v1/a.tif"]),
        ({"c.tif": ".store/1234.tif"}, ["c.tif", "v1/a.tif"]),
    ],
)
def test_a_file_is_one_tile_however_many_links_lead_to_it(tmp_path, links, found):
    source = tmp_path / "source"
    touch(tmp_path, "source/v1/a.tif", "source/blobs/1234", "source/.store/1234.tif", "elsewhere/b.tif")
    for name, target in links.items():
        _link(source, name, target)
    assert _paths(source) == found


def test_a_pattern_may_ask_for_the_names_of_links(tmp_path):
    touch(tmp_path, "v1/sub/a.tif")
    _link(tmp_path, "latest", "v1")
    _link(tmp_path, "v1/sub/loop", "..")
    assert _paths(tmp_path, "latest/**/*.tif") == ["latest/sub/a.tif"]
    assert _paths(tmp_path, "**/*.tif") == ["v1/sub/a.tif"]


def test_a_link_that_leads_nowhere_is_a_tile_that_cannot_be_read(tmp_path):
    touch(tmp_path, "a.tif")
    _link(tmp_path, "b.tif", "gone.tif")
    assert _paths(tmp_path) == ["a.tif", "b.tif"]


# ---- ENVI ----


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.dat", "a.hdr"], ["a.dat"]),
        (["a.dat", "a.dat.hdr"], ["a.dat"]),
        (["A.IMG", "A.HDR", "b.tif"], ["A.IMG", "b.tif"]),
        (["f01_v1.2", "f01_v1.2.hdr"], ["f01_v1.2"]),
        (["x/a.bsq", "x/a.hdr", "x/a.aux.xml", "x/a.bsq.aux.xml", "x/a.txt"], ["x/a.bsq"]),
        (["a.tif", "a.hdr"], ["a.tif"]),
        (["a.tif", "a.tif.ovr", "a.tif.msk", "a.tif.aux.xml"], ["a.tif"]),
    ],
)
def test_a_file_beside_an_envi_header_is_a_raster(tmp_path, names, found):
    touch(tmp_path, *names)
    lines = []
    assert [tile.path for tile in find_tiles(tmp_path, "enmap", warn=lines.append)] == found
    assert lines == []


def test_headers_and_data_that_are_alone_are_told_in_a_line_each(tmp_path):
    touch(tmp_path, "a.tif", "b.hdr", "c.dat", "d.dat")
    lines = []
    assert [tile.path for tile in find_tiles(tmp_path, "enmap", warn=lines.append)] == ["a.tif"]
    assert len(lines) == 2 and lines[0].startswith("b.hdr without its data") and "2 files, e.g. c.dat" in lines[1]
