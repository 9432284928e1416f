"""Tasks are data: every file of the registry loads, and codes become indices."""

import re
from importlib.resources import files

import numpy as np
import pytest

from finetune.tasks import dump_task, get_task, parse_task
from shards.errors import ConfigError
from shards.sensors import NODATA

NAMES = sorted(entry.name.removesuffix(".yaml") for entry in files("finetune.tasks").iterdir() if ".yaml" in entry.name)
TASK = """name: mine
description: Two classes
classes:
  - {code: 7, name: water, colour: "#0000ff"}
  - {code: 9000000000, name: land, colour: "#00ff00"}
ignore: [0]
"""


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TASK)
    return get_task(str(path))


def test_the_registry_is_not_empty():
    assert {"enmap_potsdam", "sample_materials"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_of_the_registry_loads(name):
    task = get_task(name)
    assert task.name == name
    assert task.description
    assert len(task.outputs) > 1
    assert task.ignore_index == len(task.classes)
    for values in ([code for one in task.classes for code in one.all_codes], task.outputs):
        assert len(set(values)) == len(values)
    assert parse_task(dump_task(task), name) == task
    assert all(re.fullmatch(r"#[0-9a-f]{6}", one.colour) for one in task.classes)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError) as raised:
        get_task("enmap_postdam")
    assert str(raised.value) == f"key 'task': unknown task 'enmap_postdam': known are {', '.join(NAMES)}"


def test_a_task_can_be_a_file_of_ones_own(task):
    assert (task.name, task.description, task.synthetic) == ("mine", "Two classes", False)
    assert [(one.code, one.name, one.colour) for one in task.classes] == [
        (7, "water", "#0000ff"),
        (9_000_000_000, "land", "#00ff00"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_task_file_of_any_editor_is_read(tmp_path, encoding):
    path = tmp_path / "mine.yaml"
    path.write_bytes(TASK.replace("water", "Gewässer").replace("\n", "\r\n").encode(encoding))
    assert get_task(str(path)).outputs == ["Gewässer", "land"]
    path.write_bytes(TASK.replace("water", "Gewässer").encode("latin-1"))
    with pytest.raises(ConfigError, match="not YAML") as raised:
        get_task(str(path))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'none.yml'}: no such task file")):
        get_task(str(tmp_path / "none.yml"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "- 1",
        TASK + "extra: 1\n",
        TASK.replace("code: 7", "code: seven"),
        TASK.replace("code: 7", "code: 0"),
        TASK.replace("code: 7", "colours: 7"),
        TASK + "kind: regression\n",
        TASK.replace("#0000ff", "blue"),
    ],
)
def test_a_file_that_is_no_task_is_one_line(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"not a task description|not YAML") as raised:
        get_task(str(path))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_codes_become_indices_and_the_rest_is_ignored(task, dtype):
    indices = task.to_indices(np.asarray([[7, 0, 8], [7, 1, 2]], dtype))
    assert indices.dtype == np.int16
    np.testing.assert_array_equal(indices, [[0, 2, 2], [0, 2, 2]])


def test_codes_beyond_int32_and_below_zero(task):
    codes = np.asarray([9_000_000_000, -1, 2**62, 9_000_000_000 % 2**32, -(2**63), 7])
    assert task.to_indices(codes).tolist() == [1, 2, 2, 2, 2, 0]


def test_the_codes_are_left_as_they_were(task):
    codes = np.asarray([7, 0])
    task.to_indices(codes)
    assert codes.tolist() == [7, 0]


def test_several_codes_can_be_one_class():
    corine = get_task("enmap_corine")
    assert corine.to_indices(np.array([111, 112, 121, 999])).tolist() == [0, 0, 1, 19]
    hot = corine.to_multihot(np.array([[112, 523], [999, 0]]))
    assert np.flatnonzero(hot).tolist() == [0, 18]


def test_codes_that_are_neither_a_class_nor_ignored_are_told(task):
    assert task.unknown_codes(np.array([7, 0, 5, 8])) == [5, 8]
    assert get_task("enmap_cdl").unknown_codes(np.array([61, 999])) == []


@pytest.mark.parametrize(
    ("name", "outputs", "tiles"),
    [
        ("enmap_cdl", 14, 1600),
        ("enmap_nlcd", 15, 13500),
        ("enmap_corine", 19, 11000),
        ("enmap_eurocrops", 15, 1800),
        ("enmap_bdforet", 12, 2550),
        ("enmap_treemap", 24, 10000),
        ("enmap_bnetd", 10, 2100),
        ("desis_cdl", 14, 1000),
        ("eo1_cdl", 14, 550),
        ("hyperview", 4, 1732),
    ],
)
def test_the_ten_tasks_have_the_published_sizes(name, outputs, tiles):
    task = get_task(name)
    assert len(task.outputs) == outputs
    assert sum(task.tiles.values()) == tiles
    assert task.published is not None


def test_a_task_of_one_class_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(line for line in TASK.splitlines() if "land" not in line))
    with pytest.raises(ConfigError, match=r"one class, 'water', can't be told from others: give the rest one, too"):
        get_task(str(path))


def test_pixels_without_a_label_never_count_and_are_no_code(task):
    codes = np.array([[7, NODATA], [NODATA, 9_000_000_000]])
    assert task.unknown_codes(codes) == []
    assert task.to_indices(codes).tolist() == [[0, 2], [2, 1]]
    assert task.to_multihot(codes).tolist() == [1, 1]
    assert task.to_multihot(np.full((2, 2), NODATA)).tolist() == [0, 0]
    with pytest.raises(ConfigError, match="code -32768 marks pixels without a label"):
        parse_task(TASK.replace("code: 7", f"code: {NODATA}"), "mine")


def test_classes_are_found_by_their_names():
    assert get_task("enmap_cdl").codes_by_name["corn"] == 1
    assert get_task("enmap_corine").codes_by_name["inland wetlands"] == 411
