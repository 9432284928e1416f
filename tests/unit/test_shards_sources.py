"""Directories of tiles, archives and products: what is found, under which keys, and what may not be overlooked."""

import os
import re
import zipfile

import pytest
from support.tiles import ARCHIVE

from shards.bundles import find_bundles
from shards.errors import SourceError
from shards.scene import SceneLimits
from shards.sensors import get_sensor
from shards.sources import TileSource, find_tiles


def _touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _archive_names(prefix):
    return [f"{prefix}{location}/{scene}.tif" for location, scenes in ARCHIVE.items() for scene in scenes]


@pytest.mark.parametrize("prefix", ["", "enmap/"])
def test_spectralearth_layout_is_found_in_the_folder_and_one_below(tmp_path, prefix):
    _touch(tmp_path, *_archive_names(prefix))
    tiles = find_tiles(tmp_path, "enmap")
    expected = [(place, scene, f"{prefix}{place}/{scene}.tif") for place in ARCHIVE for scene in ARCHIVE[place]]
    assert tiles == [TileSource(*row) for row in sorted(expected)]
    assert tiles[0].key == "0000017_00003"


@pytest.mark.parametrize("labels", ["cdl/", "aaa/", "zzz/"])
def test_label_tiles_of_the_same_names_stay_out(tmp_path, labels):
    _touch(tmp_path, *_archive_names("enmap/"), *_archive_names(labels))
    tiles = find_tiles(tmp_path, "enmap")
    assert sorted(tile.path for tile in tiles) == sorted(_archive_names("enmap/"))


def test_other_files_in_an_archive_are_no_tiles(tmp_path):
    _touch(tmp_path, "0000017/00003.tif", "0000017/00003.tif.aux.xml", "0000017/readme.txt", "splits/train.txt")
    assert [tile.path for tile in find_tiles(tmp_path, "enmap")] == ["0000017/00003.tif"]


def test_images_beside_labels_are_the_tiles(tmp_path):
    _touch(tmp_path, "images/a_1.tif", "images/b/c.tiff", "labels/a_1.tif", "labels/b/c.tiff", "mosaic.tif")
    tiles = find_tiles(tmp_path, "enmap")
    assert [(tile.key, tile.path) for tile in tiles] == [
        ("a-1_00000", "images/a_1.tif"),
        ("b-c_00000", "images/b/c.tiff"),
    ]


def test_in_any_other_tree_each_file_is_a_location(tmp_path):
    _touch(tmp_path, "2022/north/x.tif", "2022/south/x.TIF", "y.tiff", "notes.txt")
    tiles = find_tiles(tmp_path, "enmap")
    assert [(tile.location, tile.timestamp, tile.path) for tile in tiles] == [
        ("2022-north-x", "00000", "2022/north/x.tif"),
        ("2022-south-x", "00000", "2022/south/x.TIF"),
        ("y", "00000", "y.tiff"),
    ]


@pytest.mark.parametrize(
    "name", ["a.b.c.tif", ".hidden.tif", "Tile (1).TIF", "Zürich à 10%.tif", "日本.tif", "-_-.tif"]
)
def test_keys_are_safe_in_a_webdataset_tar(tmp_path, name):
    _touch(tmp_path, f"dir.v1/{name}", name)
    keys = [tile.key for tile in find_tiles(tmp_path, "enmap")]
    assert len(set(keys)) == 2
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)


@pytest.mark.parametrize(
    "names", [("a_b.tif", "a-b.tif"), ("a.tif", "a.tiff"), ("0000017/00003.tif", "0000017/00003.TIF")]
)
def test_two_files_of_one_key_are_refused_and_named(tmp_path, names):
    _touch(tmp_path, *names)
    with pytest.raises(SourceError) as caught:
        find_tiles(tmp_path, "enmap")
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("enmap/notes.txt", "cdl/0000017/00003.tif")])
def test_a_folder_without_tiles_is_refused(tmp_path, names):
    _touch(tmp_path, *names)
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
    _touch(tmp_path, "a.tif", "b/a.tif", "b/c/d/a.tif", "b/c/notes.txt", "0000017/00001.tif")
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
        _touch(tmp_path, *(f"patches/{PRODUCT}/{name}/{name}-{kind}.TIF" for kind in kinds))
    tiles = find_tiles(tmp_path, "enmap")
    assert [tile.location for tile in tiles] == [
        "DT0000004950-001-Y01460273-X05670694",
        "DT0000004950-001-Y01460273-X06950822",
    ]
    assert {(tile.timestamp, tile.scene, tile.date) for tile in tiles} == {("20221103T162438Z", PRODUCT, "2022-11-03")}
    assert tiles == find_tiles(tmp_path, "enmap", "**/*.TIF")


def test_quality_layers_of_patches_under_other_names_are_no_tiles(tmp_path):
    patch = "patches/tile_001/tile_001-patch_01/tile_001-patch_01"
    _touch(tmp_path, f"{patch}-SPECTRAL_IMAGE.TIF", f"{patch}-QL_QUALITY_CLOUD.TIF", f"{patch}-QL_SWIR.TIF")
    assert [tile.path for tile in find_tiles(tmp_path, "enmap")] == [f"{patch}-SPECTRAL_IMAGE.TIF"]


def test_cuts_of_a_product_under_names_of_their_own_are_places_too(tmp_path):
    names = [f"{PRODUCT}-tile_3.tif", f"{PRODUCT}-tile_4.tif", f"{PRODUCT}-SPECTRAL_IMAGE_x3.tif"]
    _touch(tmp_path, *names, f"{PRODUCT}-QL_QUALITY_CLOUD.TIF")
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


# ---- bundles ----


def _bundles(source):
    return find_bundles(source, get_sensor("enmap"), 128, SceneLimits())


def _zip(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"")


def test_archives_and_products_are_found_by_name_in_order(tmp_path):
    _touch(tmp_path, "part_2.tar.gz", "part_1.TAR", "c.tgz", "notes.txt", "checksums/md5.txt")
    _touch(tmp_path, f"{PRODUCT}/{PRODUCT}-METADATA.XML", f"{PRODUCT}/{PRODUCT}-SPECTRAL_IMAGE.TIF")
    _zip(tmp_path / "product.zip", f"{PRODUCT}/{PRODUCT}-METADATA.XML")
    _zip(tmp_path / "docs.zip", "readme.txt")
    names = [PRODUCT, "c.tgz", "part_1.TAR", "part_2.tar.gz", "product.zip"]
    assert [bundle.name for bundle in _bundles(tmp_path)] == names
    for name in names:
        assert [bundle.name for bundle in _bundles(tmp_path / name)] == [name]


def test_a_directory_of_tiles_holds_no_bundles_and_its_places_are_not_even_listed(tmp_path, monkeypatch):
    _touch(tmp_path, *_archive_names(""))
    listed = []

    class Watched:
        def __getattr__(self, name):
            return getattr(os, name)

        def scandir(self, path):
            listed.append(path)
            return os.scandir(path)

    monkeypatch.setattr(sources, "os", Watched())
    monkeypatch.setattr(scene, "os", Watched())
    assert _bundles(tmp_path) == []
    assert set(listed) == {tmp_path}  # an archive has 415,000 of them
    listed.clear()
    find_tiles(tmp_path, "enmap")
    assert len(listed) == len(ARCHIVE) + 1  # and then each once


@pytest.mark.parametrize("tile", ["x.tif", "0000017/00003.tif", "more/x.TIFF"])
def test_tiles_beside_an_archive_are_not_overlooked(tmp_path, tile):
    _touch(tmp_path, "part_1.tar", tile)
    with pytest.raises(SourceError, match="pack them one by one") as caught:
        _bundles(tmp_path)
    assert tile in str(caught.value)


def test_a_zip_that_broke_off_is_not_overlooked(tmp_path):
    _touch(tmp_path, "part_1.tar")
    _zip(tmp_path / "product.zip", f"{PRODUCT}/{PRODUCT}-METADATA.XML", f"{PRODUCT}/{PRODUCT}-SPECTRAL_IMAGE.TIF")
    os.truncate(tmp_path / "product.zip", 200)
    for source in (tmp_path, tmp_path / "product.zip"):
        with pytest.raises(SourceError, match="not a readable zip file") as caught:
            _bundles(source)
        assert str(tmp_path / "product.zip") in str(caught.value)


def test_several_products_in_one_folder_or_zip_are_not_overlooked(tmp_path):
    names = [f"{PRODUCT}-METADATA.XML", f"{PRODUCT.replace('_001_', '_002_')}-METADATA.XML"]
    _touch(tmp_path / "folder", *names)
    _zip(tmp_path / "both.zip", *names)
    for source in (tmp_path / "folder", tmp_path / "both.zip", tmp_path):
        with pytest.raises(SourceError, match="2 products in one"):
            _bundles(source)


def test_other_sources_are_refused_or_hold_nothing(tmp_path):
    _touch(tmp_path, "a.tif")
    _zip(tmp_path / "docs.zip", "readme.txt")
    for name in ("a.tif", "docs.zip"):
        with pytest.raises(SourceError, match="neither an archive"):
            _bundles(tmp_path / name)
    with pytest.raises(SourceError, match="no such directory"):
        _bundles(tmp_path / "absent")
    assert _bundles(tmp_path) == []
