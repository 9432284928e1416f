"""The leaderboard: results of many labs on the same data, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.evaluation_runs import Page, make_encoders, make_result, write_run

from finetune.__main__ import main
from finetune.evaluation.results import read_results, results_schema
from finetune.metrics.aggregate import aggregate
from finetune.tasks import get_task

TASKS = ("enmap_cdl", "hyperview")


def _write(folder: Path, task: str, score: float, **changes: object) -> Path:
    """Write a lab's results on a task with two seeds; ``changes`` are changes to its data."""
    results = [make_result(get_task(task), "pretrained", seed, score) for seed in (0, 1)]
    encoders = make_encoders("a")
    encoders["pretrained"]["name"] = f"{folder.parent.name}/encoder"
    run = read_results(write_run(folder, task, results, encoders=encoders))
    hashes = {split: split[0] * 64 for split in ("train", "val", "test")}
    path = folder / "results.json"
    content = json.loads(path.read_text())
    content["data"] = run.data | {"images": hashes, "labels": hashes} | changes
    path.write_text(json.dumps(content))
    for name in ("statistics.npz", "examples.npz"):
        (folder / name).unlink()  # a lab sends results.json alone
    return path


@pytest.fixture
def labs(tmp_path: Path) -> Path:
    for task in TASKS:
        _write(tmp_path / "reference" / task, task, 0.5)
        for lab, score in (("good", 0.9), ("poor", 0.3)):
            _write(tmp_path / lab / task, task, score)
    return tmp_path


def test_labs_are_ranked_on_each_task_and_over_all_of_them(labs, capsys):
    assert main(["board", str(labs)]) == 0
    assert "board.html and board.md: 2 of enmap_cdl, 2 of hyperview" in capsys.readouterr().out
    text = (labs / "board.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines if line[0] in ("good", "poor")] == ["good", "poor"] * 3
    (overall,) = [line for line in lines if line[:2] == ["good", "good/encoder"] and len(line) == 4]
    assert overall[2].startswith("0.9") or overall[2].startswith("1.0")
    assert overall[3] == "1.0"
    page = Page((labs / "board.html").read_text())
    assert not page.outside
    assert "Leaderboard" in page.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": {"train": "t" * 64, "val": "v" * 64, "test": "0" * 64}}, "of enmap_cdl in test labels"),
        ({"images": dict.fromkeys(("train", "val", "test"), "0" * 64)}, "of enmap_cdl in images"),
        ({"images": {}}, "results of an earlier version, which don't say their data"),
    ],
)
def test_results_of_other_data_are_refused_by_name(labs, capsys, changes, says):
    path = _write(labs / "cheat" / "run", "enmap_cdl", 0.99, **changes)
    assert main(["board", str(labs)]) == 1
    captured = capsys.readouterr().err
    assert str(path) in captured and says in captured
    assert "cheat |" not in (labs / "board.md").read_text()
    assert says in Page((labs / "board.html").read_text()).text


def test_other_splits_unknown_tasks_and_broken_files_are_refused(labs, capsys):
    path = _write(labs / "other" / "split", "enmap_cdl", 0.9)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"tiles": content["tiles"][::-1]}))
    _write(labs / "other" / "task", "enmap_corine", 0.9)
    broken = _write(labs / "other" / "broken", "enmap_cdl", 0.9)
    broken.write_text(json.dumps(content | {"surprise": 1}))
    assert main(["board", str(labs)]) == 1
    said = capsys.readouterr().err
    assert "differs from the reference of enmap_cdl in test tiles" in said
    assert "task enmap_corine has no reference: known are enmap_cdl, hyperview" in said
    assert f"{broken}: damaged results (key 'surprise': " in said


def test_a_board_needs_one_reference_of_a_task(tmp_path, capsys):
    assert main(["board", str(tmp_path)]) == 2
    assert "no results.json of a reference" in capsys.readouterr().err
    _write(tmp_path / "reference" / "one", "enmap_cdl", 0.5)
    _write(tmp_path / "reference" / "two", "enmap_cdl", 0.5, labels=dict.fromkeys(("train", "val", "test"), "0" * 64))
    assert main(["board", str(tmp_path)]) == 2
    assert "another reference of enmap_cdl differs in labels: keep one" in capsys.readouterr().err


def test_the_schema_names_every_key_of_a_file(labs, capsys):
    assert main(["board", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    content = json.loads((labs / "good" / "enmap_cdl" / "results.json").read_text())
    assert set(content) == set(schema["properties"]) == set(schema["required"])
    assert schema["additionalProperties"] is False
    (entry,) = [one for name, one in schema["$defs"].items() if name == "Entry"]
    assert set(content["results"][0]) == set(entry["properties"])
    assert schema == results_schema()


def test_an_interquartile_mean_leaves_out_the_extremes_and_ranks_by_the_mean():
    flat = np.array([0.4, 0.5, 0.6])
    scores = {"a": [flat, flat + 1], "b": [flat - 0.2, flat + 0.8], "c": [np.array([0.5, 0.5, 5.0]), flat + 0.8]}
    found = aggregate(scores)
    assert [found[name].rank for name in "abc"] == [1.5, 2.5, 1.5]
    assert all(one.interval[0] <= one.iqm <= one.interval[1] for one in found.values())
    assert list(found) == sorted(found, key=lambda name: -found[name].iqm)
    single = aggregate({"a": [np.array([0.0, 1.0, 2.0, 3.0])]})["a"]
    assert single.iqm == pytest.approx(0.5)
    assert single.rank == 1
