"""Directories of tiles: which files are tiles, and under which keys."""

import re

import pytest
from support.tiles import ARCHIVE

from shards.errors import SourceError
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
