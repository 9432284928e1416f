"""One class a tile: from tables and from names of folders, and one line for what is wrong."""

from pathlib import Path

import numpy as np
import pytest
from support.tiles import write_tile

from finetune.__main__ import main
from finetune.config import LabeledDataConfig
from finetune.data.layouts import find_items
from finetune.tasks import Task
from shards.errors import ConfigError, SourceError
from shards.sensors.sensor import NODATA

CLASSES = [{"code": 1, "name": "Annual crop", "color": "#ff0000"}, {"code": 2, "name": "Forest", "color": "#00ff00"}]


def _task(**changes: object) -> Task:
    return Task.model_validate(
        {"name": "land", "description": "d", "kind": "classification", "classes": CLASSES} | changes
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(10):
        folder = ("Annual_Crop", "FOREST")[number % 2]
        write_tile(tmp_path / "images" / folder / f"t{number}.tif", np.full((202, 8, 8), number, np.int16))
    return tmp_path / "images"


def _codes(images: Path, task: Task | None = None, **data: object) -> dict[str, int]:
    found = find_items(LabeledDataConfig(images=str(images), **data), task or _task(), seed=0)
    assert [len(part) for part in found.values()] == [6, 2, 2]
    return {item.file.stem: int(item.label()) for part in found.values() for item in part if item.file}


def test_names_of_folders_are_classes_in_any_spelling(images):
    assert _codes(images) == {f"t{number}": 1 + number % 2 for number in range(10)}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_names_tiles_and_their_class_by_name_or_code(images, delimiter):
    lines = [["tile", "class"], *([f"t{n}", ("forest", "1")[n % 2]] for n in range(10))]
    table = images.parent / "labels.csv"
    table.write_text("\n".join(delimiter.join(line) for line in lines) + "\n")
    assert _codes(images, labels=str(table)) == {f"t{number}": 2 - number % 2 for number in range(10)}


def test_of_several_columns_one_is_named(images):
    table = images.parent / "labels.csv"
    table.write_text("tile,by,cover\n" + "".join(f"t{n}.tif,me,Forest\n" for n in range(10)))
    assert set(_codes(images, labels=str(table), label_field="cover").values()) == {2}
    with pytest.raises(SourceError, match=r"choose the column .* --label-field .*: by, cover"):
        _codes(images, labels=str(table))


def test_images_that_a_table_does_not_name_are_left_out(images):
    table = images.parent / "labels.csv"
    table.write_text("tile,class\n" + "".join(f"t{n},1\n" for n in range(5)))
    found = find_items(LabeledDataConfig(images=str(images), labels=str(table)), _task(), seed=0)
    assert sum(map(len, found.values())) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("t0,1\nt0.tif,2", "line 3: t0.tif is listed twice: remove one of them"),
        ("t0,1\nt99,1", "1 of 2 tiles are missing, e.g. t99"),
        ("t0,Lake", "line 2: 'Lake' is not a class of task land: its classes are Annual crop, Forest"),
        ("t0", "line 2: 1 columns, but the header has 2"),
    ],
)
def test_what_is_wrong_in_a_table_is_one_line(images, text, says):
    table = images.parent / "labels.csv"
    table.write_text(f"tile,class\n{text}\n")
    with pytest.raises(SourceError, match=says) as raised:
        find_items(LabeledDataConfig(images=str(images), labels=str(table)), _task(), seed=0)
    assert "\n" not in str(raised.value)


def test_other_names_are_no_label_where_others_are_ignored(images):
    task = _task(classes=[CLASSES[0], {"code": 9, "name": "Lake", "color": "#0000ff"}], ignore="others")
    assert set(_codes(images, task).values()) == {1, NODATA}


def test_shards_have_no_class_for_each_tile():
    with pytest.raises(ConfigError, match=r"task land has one class for each tile: give data\.images with a table"):
        find_items(LabeledDataConfig(shards="somewhere"), _task(), seed=0)


def test_check_counts_the_tiles_of_each_class(images, tmp_path, capsys):
    (tmp_path / "task.yaml").write_text(_yaml())
    assert main(["check", str(tmp_path / "task.yaml"), "--images", str(images), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    rows = {line.split("(tiles)")[0].strip(): line.split()[-3:] for line in out.splitlines() if "(tiles)" in line}
    assert sum(int(count) for name in ("Annual crop", "Forest") for count in rows[name]) == 10
    assert "land: good, 10 tiles read" in out


def _yaml() -> str:
    from finetune.tasks import dump_task

    return dump_task(_task())
