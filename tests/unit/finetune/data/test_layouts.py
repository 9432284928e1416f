"""Downloads as published, folders of one's own, labeled shards: the right tiles, and one line for what is wrong."""

import csv
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiles import write_tile

from finetune.config import LabeledDataConfig
from finetune.data.items import Item
from finetune.data.layouts import find_items
from finetune.data.regroup import grouping, regroup
from finetune.tasks import get_task, task_names
from finetune.tasks.kinds.kind import kind_of
from shards.__main__ import main as shards
from shards.errors import ConfigError, ForgeError, SourceError, TileError
from shards.sensors.sensor import NODATA, get_sensor
from shards.sources.layouts import SPLITS
from tools.sample_tasks import make_task_sample

DOWNLOADS = [name for name in task_names() if get_task(name).layout]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    for name in DOWNLOADS:
        make_task_sample(folder, get_task(name), tiles=10, size=16)
    return folder


def _data(downloads, name: str, **changes) -> LabeledDataConfig:
    return LabeledDataConfig(**({"root": str(downloads), "splits": str(downloads / "splits" / name)} | changes))


def test_ten_published_tasks_and_two_samples_have_layouts():
    assert len(DOWNLOADS) == 12
    assert [name for name in DOWNLOADS if get_task(name).synthetic] == ["sample_covers", "sample_greenness"]


@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_download_is_read_as_it_is(downloads, name):
    task = get_task(name)
    items = find_items(_data(downloads, name), task, seed=0)
    assert sum(map(len, items.values())) == 10
    first = items["train"][0]
    assert first.image().shape[0] == get_sensor(task.sensor).num_bands
    labels = [item.label() for part in items.values() for item in part]
    assert first.image().dtype == (np.float32 if task.name == "hyperview" else np.int16)
    assert not any(kind_of(task).find_problem(label) for label in labels)
    if task.classes:
        codes = np.unique(labels)
        assert (task.to_indices(codes) < len(task.classes)).sum() >= 3
    else:
        assert all(len(label) == len(task.targets) for label in labels)


def test_the_root_may_be_the_tasks_own_folder(downloads):
    task = get_task("enmap_cdl")
    inside = find_items(_data(downloads, "enmap_cdl", root=str(downloads / "enmap_cdl")), task, 0)
    above = find_items(_data(downloads, "enmap_cdl"), task, 0)
    assert [(one.name, one.file) for one in inside["train"]] == [(one.name, one.file) for one in above["train"]]


def test_eurocrops_codes_beyond_int32_come_through(downloads):
    task = get_task("enmap_eurocrops")
    items = find_items(_data(downloads, "enmap_eurocrops"), task, 0)
    codes = {int(code) for part in items.values() for item in part for code in np.unique(item.label())}
    assert max(codes) > 2**31
    assert codes - {0} <= {one.code for one in task.classes}


def test_published_fields_of_hyperview_are_held_out_whole(downloads):
    task = get_task("hyperview")
    items = find_items(_data(downloads, "hyperview"), task, seed=0)
    assert {item.place for item in items["train"]}.isdisjoint(item.place for item in items["val"])
    with open(downloads / "splits" / "hyperview" / "val.csv", newline="") as file:
        published = {row["sample_index"] for row in csv.DictReader(file)}
    assert {item.name for item in items["test"]} == published


def test_shards_with_labels_give_the_same(downloads, tmp_path):
    task, root = get_task("enmap_cdl"), downloads / "enmap_cdl"
    lists = str(downloads / "splits" / "enmap_cdl")
    words = ["pack", str(root / "enmap"), str(tmp_path / "shards"), "--labels", str(root / "cdl"), "--splits", lists]
    assert shards(words) == 0
    packed = find_items(LabeledDataConfig(shards=str(tmp_path / "shards")), task, 0)
    plain = find_items(_data(downloads, "enmap_cdl"), task, 0)
    for split in plain:
        by_place = {item.place: item for item in packed[split]}
        assert len(by_place) == len(plain[split])
        for item in plain[split]:
            np.testing.assert_array_equal(by_place[item.place].image(), item.image())
            np.testing.assert_array_equal(by_place[item.place].label(), item.label())
            assert by_place[item.place].scene == item.scene


@pytest.mark.parametrize(
    ("header", "value", "says"),
    [
        ("sample_index,P,K,Mg,pH,P", "1", "column P occurs twice"),
        (
            "sample_index,P,K,Mg,pH",
            "nan",
            "line 2: a value of P, K, Mg, pH is not a number, or sample_index is missing",
        ),
        (
            "sample_index,P,K,Mg,pH",
            "inf",
            "line 2: a value of P, K, Mg, pH is not a number, or sample_index is missing",
        ),
    ],
)
def test_a_table_of_targets_with_a_doubt_is_one_line(downloads, tmp_path, header, value, says):
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text(f"{header}\n0,1,2,3,{value},5\n")
    with pytest.raises(SourceError, match=says):
        find_items(_data(downloads, "hyperview", splits=str(tmp_path)), get_task("hyperview"), 0)


@pytest.mark.parametrize("by", ["location", "scene"])
def test_regrouped_splits_share_no_group_and_no_tile_is_lost(downloads, by):
    task = get_task("enmap_cdl")
    items = find_items(_data(downloads, "enmap_cdl"), task, 0)
    again = find_items(_data(downloads, "enmap_cdl", group=by), task, 0)
    names = [item.name for part in again.values() for item in part]
    assert sorted(names) == sorted(item.name for part in items.values() for item in part)
    groups = [{item.scene if by == "scene" else item.place for item in part} for part in again.values()]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert regroup(items, by, 0) == regroup(items, by, 0)


def test_what_is_wrong_is_one_line(downloads, tmp_path):
    task = get_task("enmap_cdl")
    lists = tmp_path / "lists"
    lists.mkdir()
    names = sorted(f"{path.parent.name}/{path.name}" for path in (downloads / "enmap_cdl" / "enmap").glob("*/*.tif"))

    def error(kind: type[ForgeError], **changes: str | None) -> str:
        with pytest.raises(kind) as raised:
            find_items(_data(downloads, "enmap_cdl", **changes), task, 0)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    (lists / "train.txt").write_text("\n".join(names[:4]))
    (lists / "val.txt").write_text(names[4] + "\n0009999/00001.tif\n")
    assert error(SourceError, splits=str(lists)).endswith("val.txt: 1 of 2 tiles are missing, e.g. 0009999/00001.tif")
    (lists / "val.txt").write_text(names[4])
    assert "test.txt: missing split file" in error(SourceError, splits=str(lists))
    (lists / "test.txt").write_text(names[0])
    assert error(SourceError, splits=str(lists)) == f"{lists}: tile {names[0]} is listed in 'train' and in 'test'"
    (lists / "test.txt").write_text("")
    assert error(SourceError, splits=str(lists)) == f"{lists}: no tiles in the 'test' split"
    assert error(SourceError, root=str(tmp_path)).endswith("enmap: no such folder of images")


def test_a_task_of_ones_own_has_no_layout(downloads):
    with pytest.raises(ConfigError, match=r"sample_materials has no layout: give 'data\.images'"):
        find_items(_data(downloads, "enmap_cdl"), get_task("sample_materials"), 0)


def test_damaged_arrays_and_tables_are_named(downloads, tmp_path):
    task = get_task("hyperview")
    make_task_sample(tmp_path, task, tiles=8)
    data = _data(tmp_path, "hyperview")
    image = tmp_path / "hyperview" / "images" / "0.npz"
    np.savez(image, data=np.zeros((149, 8, 8), np.uint16))
    first = next(item for item in find_items(data, task, 0)["train"] if item.name == "0")
    with pytest.raises(TileError, match=re.escape(f"{image}: shape (149, 8, 8), expected (150, height, width)")):
        first.image()
    image.write_bytes(b"PK")
    with pytest.raises(TileError, match="not a readable npz"):
        first.image()
    image.unlink()
    with pytest.raises(SourceError, match=r"train\.csv, line 2: .*0\.npz is missing"):
        find_items(data, task, 0)
    table = tmp_path / "splits" / "hyperview" / "val.csv"
    table.write_text(table.read_text().replace("Mg", "Magnesium"))
    with pytest.raises(SourceError, match=r"line 2"):
        find_items(data, task, 0)


def test_tables_with_a_byte_order_mark_are_read(tmp_path):
    task = get_task("hyperview")
    make_task_sample(tmp_path, task, tiles=8)
    data = _data(tmp_path, "hyperview")
    before = find_items(data, task, 0)
    for table in (tmp_path / "splits" / "hyperview").iterdir():
        table.write_bytes(table.read_text().replace("\n", "\r\n").encode("utf-8-sig"))
    after = find_items(data, task, 0)
    assert [[item.label().tolist() for item in after[name]] for name in SPLITS] == [
        [item.label().tolist() for item in before[name]] for name in SPLITS
    ]


# ---- tiles of one's own ----


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Ten tiles of any names, with labels of two classes, and the same in shards."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(10):
        write_tile(folder / "images" / f"field {number}.tif", np.full((202, 8, 8), number, np.int16), nodata=NODATA)
        codes = np.ones((8, 8), np.uint8)
        codes[4:], codes[0] = 2, 255
        write_tile(folder / "labels" / f"field {number}.tif", codes, nodata=255)
    assert shards(["pack", str(folder / "images"), str(folder / "shards"), "--labels", str(folder / "labels")]) == 0
    return folder


def _own(folder, packed: bool = False, **changes) -> LabeledDataConfig:
    folders = {"shards": str(folder / "shards")}
    if not packed:
        folders = {"images": str(folder / "images"), "labels": str(folder / "labels")}
    return LabeledDataConfig(**(folders | changes))


@pytest.mark.parametrize("packed", [False, True])
def test_tiles_that_name_no_scene_are_drawn_by_location_and_that_is_told(own, packed):
    task, lines = get_task("sample_materials"), []
    data = _own(own, packed, group="scene")
    items = find_items(data, task, 0, warn=lines.append)
    assert lines == ["data.group=scene: these tiles name no scene, so splits are drawn by location instead"]
    assert grouping(data, items) == "location"
    assert [len(items[name]) for name in SPLITS] == [6, 2, 2]
    assert {item.scene for name in SPLITS for item in items[name]} == {""}
    find_items(_own(own, packed, group="location"), task, 0, warn=lines.append)
    assert len(lines) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_what_label_files_declare_as_nodata_never_counts(own, packed):
    item = find_items(_own(own, packed), get_task("sample_materials"), 0)["train"][0]
    codes = item.label()
    assert (codes[0] == NODATA).all()
    assert set(np.unique(codes[1:])) == {1, 2}
    assert item.nodata() == (None if packed else 255)


def _grouped(sizes: list[int]) -> dict[str, list[Item]]:
    items = [
        Item(f"{group}-{number}", f"place-{group}", "", "1", lambda: np.zeros(0), lambda: np.zeros(0))
        for group, size in enumerate(sizes)
        for number in range(size)
    ]
    return {"train": items[: len(items) // 2], "val": items[len(items) // 2 : -1], "test": items[-1:]}


@given(st.lists(st.integers(1, 40), min_size=3, max_size=12), st.integers(0, 3))
def test_three_groups_or_more_leave_no_split_empty(sizes, seed):
    split = regroup(_grouped(sizes), "location", seed)
    assert all(split[name] for name in SPLITS)
    assert sum(len(split[name]) for name in SPLITS) == sum(sizes)
    places = [{item.place for item in split[name]} for name in SPLITS]
    assert sum(map(len, places)) == len(set.union(*places)) == len(sizes)


def test_fewer_groups_than_splits_are_an_error_that_says_what_to_do():
    with pytest.raises(SourceError, match=r"9 tiles of 2 locations can't fill three splits: .*\(data\.splits\)"):
        regroup(_grouped([5, 4]), "location", 0)


def test_options_of_labels_do_not_go_with_shards():
    with pytest.raises(ValidationError, match="shards contain their labels"):
        LabeledDataConfig(shards="somewhere", label_field="crop")
