"""Images, labels and split lists: which belongs to which, whoever wrote the list and on what machine."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.deliveries import touch
from support.tiles import ARCHIVE

from shards.errors import SourceError
from shards.sources.labels import Labels
from shards.sources.layouts import SPLITS, find_tiles
from shards.sources.pairs import (
    TileNames,
    find_label,
    find_labeled,
    published_split,
    read_lines,
    scene_of,
    split_by_location,
)
from shards.sources.tile_names import SourceTile

# ---- images and their labels ----


@pytest.fixture
def labeled(tmp_path):
    names = [f"enmap/{place}/{scene}.tif" for place, scenes in ARCHIVE.items() for scene in scenes]
    touch(tmp_path / "images", *names)
    touch(tmp_path / "labels", *names)
    lists = {"train": ["0000017/00003.tif", "0000231/00003.tif"], "val": ["0150003/04411.tif"], "test": []}
    for name, lines in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))  # no last line break, as in the published ones
    return tmp_path


def _labeled(folder, splits=None, seed=0):
    return find_labeled(folder / "images", Labels(folder / "labels", splits), "enmap", seed)


def test_without_split_files_places_are_split_by_the_seed(labeled):
    tiles = _labeled(labeled)
    assert [tile.key for tile in tiles] == [tile.key for tile in find_tiles(labeled / "images", "enmap")]
    assert all(tile.mask == tile.path for tile in tiles)
    splits = {}
    for tile in tiles:
        splits.setdefault(tile.location, set()).add(tile.split)
    assert all(len(names) == 1 for names in splits.values())  # no place in two splits
    assert {tile.split for tile in tiles} == set(SPLITS)
    assert tiles == _labeled(labeled)
    assert any(tiles != _labeled(labeled, seed=seed) for seed in range(1, 6))


@pytest.mark.parametrize("as_mapping", [False, True])
def test_split_files_name_the_tiles(labeled, as_mapping):
    splits = {name: labeled / f"{name}.txt" for name in SPLITS} if as_mapping else labeled
    assert [(tile.key, tile.split) for tile in _labeled(labeled, splits)] == [
        ("0000017_00003", "train"),
        ("0000231_00003", "train"),
        ("0150003_04411", "val"),
    ]


def test_what_is_wrong_with_labels_or_split_files_is_named(labeled):
    (labeled / "test.txt").write_text("0000017/00003.tif\n")
    with pytest.raises(SourceError, match=r"name enmap/0000017/00003\.tif twice \(test, train\)"):
        _labeled(labeled, labeled)
    (labeled / "test.txt").write_text("0000017/99999.tif\n0000231/00003.tif\n")
    with pytest.raises(SourceError, match=r"1 of 2 tiles are missing, e\.g\. 0000017/99999\.tif"):
        _labeled(labeled, labeled)
    (labeled / "test.txt").unlink()
    with pytest.raises(SourceError, match="missing split file"):
        _labeled(labeled, labeled)
    (labeled / "labels/enmap/0000017/05120.tif").unlink()
    with pytest.raises(SourceError, match="no label tile for this image"):
        _labeled(labeled)
    shutil.rmtree(labeled / "labels")
    with pytest.raises(SourceError, match="no such folder or file of labels"):
        _labeled(labeled)


def test_fields_of_polygons_are_refused_for_a_folder(labeled):
    with pytest.raises(SourceError, match="label_field and label_layer apply only to polygons"):
        find_labeled(labeled / "images", Labels(labeled / "labels", field="crop"), "enmap", 0)


def test_a_label_of_another_format_has_the_name_of_its_image(tmp_path):
    touch(tmp_path, "a/t1.dat", "a/t1.hdr", "a/t1.dat.aux.xml", "a/t2.tif", "a/t10.tif", "a/t3", "a/t3.hdr")
    assert find_label(tmp_path, "a/t1.tif") == "a/t1.dat"
    assert find_label(tmp_path, "enmap/a/t2.tiff", "enmap/") == "a/t2.tif"
    assert find_label(tmp_path, "a/t3.tif") == "a/t3"
    with pytest.raises(SourceError, match="no label tile for this image"):
        find_label(tmp_path, "b/t1.tif")
    touch(tmp_path, "a/t1.png")
    with pytest.raises(SourceError, match=r"t1\.dat and t1\.png could both be the label of a/t1\.tif"):
        find_label(tmp_path, "a/t1.tif")


# ---- lists ----

DEEP = [f"{year}/site/t{number}.tif" for year in (2021, 2022) for number in range(3)] + ["2021/other/t9.tif"]


def _names(tmp_path, *lines: str, tiles=DEEP, images=Path("/data/set/images"), encoding="utf-8", end="\n"):
    """The paths that the lines of a list name."""
    lists = {name: tmp_path / f"{name}.txt" for name in SPLITS}
    for path in lists.values():
        path.write_bytes(b"")
    lists["train"].write_bytes(end.join(lines).encode(encoding))
    sources = [SourceTile(path.replace("/", "-"), "00000", path) for path in tiles]
    return [tile.path for tile in published_split(lists, sources, images)["train"]]


@pytest.mark.parametrize(
    "line",
    [
        "2021/site/t0.tif",
        "2021/site/t0",
        "./2021/site/t0.tif",
        "2021\\site\\t0.tif",
        " 2021/site/t0.tif\t",
        '"2021/site/t0.tif"',
        "images/2021/site/t0.tif",
        "/data/set/images/2021/site/t0.tif",
    ],
)
def test_a_line_is_a_whole_path_however_it_is_written(tmp_path, line):
    assert _names(tmp_path, line) == ["2021/site/t0.tif"]


@pytest.mark.parametrize("line", ["t9.tif", "t9", "other/t9.tif"])
def test_or_the_ending_of_one_path_alone(tmp_path, line):
    assert _names(tmp_path, line) == ["2021/other/t9.tif"]


@pytest.mark.parametrize("line", ["site/t0.tif", "t0.tif", "t0"])
def test_a_line_that_could_be_two_tiles_is_an_error_with_both(tmp_path, line):
    with pytest.raises(SourceError) as raised:
        _names(tmp_path, line)
    expected = f"'{line}' could be 2021/site/t0.tif or 2022/site/t0.tif: write a longer part of its path"
    assert str(raised.value) == f"{tmp_path / 'train.txt'}: {expected}"


@pytest.mark.parametrize("line", ["te/t0.tif", "2023/site/t0.tif", "2021/site", "/elsewhere/2021/site/t0.tif", "9.tif"])
def test_a_line_that_names_no_tile_is_told(tmp_path, line):
    with pytest.raises(SourceError, match="1 of 2 tiles are missing"):
        _names(tmp_path, "2021/site/t1.tif", line)


def test_a_whole_path_comes_before_an_ending(tmp_path):
    assert _names(tmp_path, "t0.tif", tiles=["t0.tif", "a/t0.tif"]) == ["t0.tif"]
    assert _names(tmp_path, "t0.tif", tiles=["t0.tif", "t0.tiff"]) == ["t0.tif"]
    with pytest.raises(SourceError, match=r"could be t0\.tif or t0\.tiff"):
        _names(tmp_path, "t0", tiles=["t0.tif", "t0.tiff"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-with-mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n"])
def test_lists_of_any_editor_are_read(tmp_path, encoding, end):
    lines, tiles = ["上海/t0.tif", "Zürich/t1.tif", ""], ["上海/t0.tif", "Zu\u0308rich/t1.tif"]  # as a Mac stores it
    if encoding == "utf-16-le-with-mark":
        lines[0], encoding = "\ufeff" + lines[0], "utf-16-le"
    assert _names(tmp_path, *lines, tiles=tiles, encoding=encoding, end=end) == tiles


def test_a_list_that_is_no_text_is_one_line(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(SourceError, match=r"train\.txt: not a text file in utf-16 .*: save it as UTF-8"):
        read_lines(path)


@given(st.lists(st.text("ab/", min_size=1, max_size=8), min_size=1, unique=True))
def test_every_tile_is_found_by_its_own_path(names):
    paths = sorted({"/".join(filter(None, name.split("/"))) + "x.tif" for name in names})
    tiles = [SourceTile(path, "00000", path) for path in paths]
    finder = TileNames(tiles, Path("/data"))
    assert [finder.find(path, Path("list")).path for path in paths] == paths


# ---- scenes ----


def test_only_names_that_tell_a_scene_have_one():
    assert scene_of(SourceTile("0000017", "05120", "0000017/05120.tif")) == "05120"
    assert scene_of(SourceTile("DT1-001", "20220724T104526Z", "p.tif", "ENMAP01-scene")) == "ENMAP01-scene"
    assert scene_of(SourceTile("t0", "00000", "t0.tif")) == ""
    assert scene_of(SourceTile("1234567", "00000", "1234567.tif")) == ""


def test_a_location_is_in_one_split():
    tiles = [SourceTile(f"place{number % 7}", str(number), "") for number in range(40)]
    split = split_by_location(tiles, 3)
    places = [{tile.location for tile in split[name]} for name in SPLITS]
    assert sorted(map(len, places)) == [1, 1, 5]
    assert len(set.union(*places)) == 7
