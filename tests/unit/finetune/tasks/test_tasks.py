"""Tasks are data: every file of the registry loads, and codes become indices."""

import json
import re
from importlib.resources import files

import numpy as np
import pytest
import yaml

from finetune.tasks import dump_task, get_task, parse_task
from shards.errors import ConfigError
from shards.sensors.sensor import NODATA

NAMES = sorted(entry.name.removesuffix(".yaml") for entry in files("finetune.tasks").iterdir() if ".yaml" in entry.name)
TASK = """name: mine
description: Two classes
classes:
  - {code: 7, name: water, color: "#0000ff"}
  - {code: 9000000000, name: land, color: "#00ff00"}
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
    assert task.outputs
    assert task.ignore_index == len(task.classes)
    for values in ([code for one in task.classes for code in one.all_codes], task.outputs):
        assert len(set(values)) == len(values)
    assert parse_task(dump_task(task), name) == task.model_copy(update={"scene": None, "notes": None})
    assert all(re.fullmatch(r"#[0-9a-f]{6}", one.color) for one in task.classes)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError) as raised:
        get_task("enmap_postdam")
    assert (
        str(raised.value)
        == f"key 'task': unknown task 'enmap_postdam': known are {', '.join(NAMES)}, or the path of a .yaml file"
    )


def test_a_task_can_be_a_file_of_ones_own(task):
    assert (task.name, task.description, task.synthetic) == ("mine", "Two classes", False)
    assert [(one.code, one.name, one.color) for one in task.classes] == [
        (7, "water", "#0000ff"),
        (9_000_000_000, "land", "#00ff00"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_task_file_of_any_editor_is_read(tmp_path, encoding):
    path = tmp_path / "mine.yaml"
    path.write_bytes(TASK.replace("water", "Gewässer").replace("\n", "\r\n").encode(encoding))
    assert get_task(str(path)).outputs == ["Gewässer", "land"]
    path.write_bytes(TASK.replace("water", "Gewässer").encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text") as raised:
        get_task(str(path))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"task '{tmp_path / 'none.yml'}': no such file")):
        get_task(str(tmp_path / "none.yml"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("[", "line 1: not valid YAML"),
        ("- 1", "expected a mapping of keys to values, found a list"),
        (TASK + "extra: 1\n", "unknown key 'extra'"),
        (TASK + "---\nname: other\n", "write one document"),
        (TASK + "name: again\n", "line 7: key 'name' is given twice, first in line 1"),
        (TASK + "kind:\n\tregression\n", "indent with spaces"),
        (TASK + "kind: segmentaton\n", "key 'kind': 'segmentaton' is not one of 'segmentation', 'multilabel'"),
        (TASK + "tiles: {trian: 3}\n", "key 'tiles.trian': no such split: use train, val, test"),
        (TASK + "tiles: {train: -3}\n", "key 'tiles.train': expected a whole number of at least 0, got -3"),
        (
            TASK + "published: {lr: .nan, weight_decay: 0, epochs: 1, batch: 1, crop_scale: [0.5, 1]}\n",
            "'published.lr'",
        ),
        (TASK + "published: {lr: 1, weight_decay: 0, epochs: 1, batch: 1, crop_scale: [1, 0.5]}\n", "[0.5, 1.0]"),
        (TASK + "layout: {folder: a, images: b, lables: c}\n", "did you mean 'layout.labels'?"),
        (TASK.replace("code: 7", "code: seven"), "key 'classes.0.code': expected a whole number of 64 bits, or null"),
        (TASK.replace("code: 7", "code: 1e30"), "key 'classes.0.code'"),
        (TASK.replace("code: 7", f"code: {10**30}"), "key 'classes.0.code': expected a whole number of 64 bits"),
        (
            TASK.replace("code: 7", "code: 0"),
            "code 0 is listed twice, by class 'water' and by ignore",
        ),
        (TASK.replace("code: 7", "code: 0644"), "0644 may be octal: write 644"),
        (TASK.replace("code: 7", "codes: [7, 7]"), "key 'classes.0.codes': 7 is given twice"),
        (TASK.replace("code: 7", "coed: 7"), "unknown key 'classes.0.coed'; did you mean 'classes.0.code'?"),
        (TASK.replace("name: water", "name: LAND"), "two outputs have the name 'land'"),
        (TASK.replace("name: water", "name: 3"), "key 'classes.0.name': expected a name, got 3: write '3' in quotes"),
        (TASK.replace("ignore: [0]", "ignore: other"), "key 'ignore': expected a list, each"),
        (TASK.replace("ignore: [0]", "ignore: [x]"), "key 'ignore.0': expected a whole number of 64 bits, got 'x'"),
        (TASK + "kind: regression\n", "kind regression needs targets and no classes"),
        (TASK.replace("#0000ff", "blue"), "key 'classes.0.color': expected a color such as '#ffaa00', got 'blue'"),
        (TASK.replace('color: "#0000ff"}', "color: \n #0000ff\n }"), "expected a color in quotes"),
    ],
)
def test_a_file_that_is_no_task_is_one_line(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        get_task(str(path))
    assert str(raised.value).startswith(f"task '{path}'")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("color", ["#0000FF", "#0000ff", "#00f", "#00F"])
@pytest.mark.parametrize("key", ["color", "colour"])
def test_a_color_is_a_hex_triplet_of_any_case_under_either_spelling(key, color):
    task = parse_task(TASK.replace("#0000ff", color).replace("color", key), "mine")
    assert task.classes[0].color == "#0000ff"
    assert "colour" not in dump_task(task)


def test_both_spellings_of_a_color_in_one_class_are_refused():
    with pytest.raises(ConfigError, match=r"unknown key 'classes\.0\.colour'; did you mean 'classes\.0\.color'\?"):
        parse_task(TASK.replace("name: water", "colour: '#fff', name: water"), "mine")


def test_a_class_may_be_called_what_yaml_once_took_for_a_truth_value():
    task = parse_task(TASK.replace("name: water", "name: no").replace("name: land", "name: on"), "mine")
    assert task.outputs == ["no", "on"]
    assert parse_task(dump_task(task), "mine") == task


def test_merge_keys_and_anchors_are_for_tasks_too():
    text = TASK.replace("- {code: 7", "- &one {code: 7").replace(
        "{code: 9000000000, name: land, ", "{<<: *one, code: 8, name: land, "
    )
    assert parse_task(text, "mine").classes[1].code == 8


def test_a_task_can_be_json(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(yaml.safe_load(TASK), indent="\t"))
    assert get_task(str(path)) == parse_task(TASK, "mine")
    path.write_text('{"name": "a",\n "name": "b"}')
    with pytest.raises(ConfigError, match="not valid JSON: key 'name' is given twice"):
        get_task(str(path))


def test_the_band_table_of_a_task_is_found_by_variables_and_beside_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORS_TEST", str(tmp_path / "sensors"))
    path = tmp_path / "mine.yaml"
    (tmp_path / "mine.csv").touch()
    for sensor, expected in [
        ("mine.csv", str(tmp_path / "mine.csv")),
        ("$SENSORS_TEST/a b.csv", str(tmp_path / "sensors/a b.csv")),
        ("enmap", "enmap"),
    ]:
        path.write_text(f"{TASK}sensor: {sensor}\n")
        assert get_task(str(path)).sensor == expected
    path.write_text(f"{TASK}sensor: $NO_SUCH_SENSORS/a.csv\n")
    with pytest.raises(ConfigError, match=r"key 'sensor': .* needs the environment variable NO_SUCH_SENSORS"):
        get_task(str(path))


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
    with pytest.raises(
        ConfigError, match=r"a single class, 'water', leaves nothing to distinguish: add a class for the rest"
    ):
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


@pytest.mark.parametrize("part", ["folder", "images", "labels"])
def test_a_task_names_no_folder_outside_its_own(part):
    text = files("finetune.tasks").joinpath("enmap_cdl.yaml").read_text()
    task = yaml.safe_load(text)
    task["layout"][part] = "../../elsewhere"
    with pytest.raises(ConfigError, match=rf"'layout\.{part}'.*not a path below its folder"):
        parse_task(yaml.safe_dump(task), "t")
