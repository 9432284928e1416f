"""The report: seeds put together, tables with the right numbers, one page that needs nothing else."""

import csv
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from finetune.__main__ import main
from finetune.evaluation.results import Result, RunResults, read_part, read_results, write_part, write_results
from finetune.report.collect import collect, find_runs, read_runs
from finetune.report.rows import Row, TaskReport
from finetune.tasks import Task, get_task
from finetune.tasks.kinds.kind import kind_of

TILES = 24
VOID = {"meta", "img", "br", "line", "circle", "polyline", "polygon"}


class Page(HTMLParser):
    """Text, images and links of a page; fails on tags that don't close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "img":
            self.images.append(told)
        for key in ("src", "href"):
            value = told.get(key) or ""
            if value and not value.startswith(("data:", "#")):
                self.outside.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _reports(*folders: Path) -> list[TaskReport]:
    runs, problems = read_runs(find_runs(folders))
    assert not problems
    return collect(runs)


def _result(
    task: Task,
    encoder: str,
    seed: int,
    right: float,
    protocol: str = "frozen",
    fraction: float = 1.0,
    **settings: object,
) -> Result:
    rng = np.random.default_rng([seed, int(1000 * right)])
    outputs = len(task.outputs)
    if task.kind == "segmentation":
        units = np.zeros((TILES, outputs, outputs), np.int32)
        for tile in range(TILES):
            for label in range(outputs):
                hits = rng.binomial(100, right)
                units[tile, label, label], units[tile, label, (label + 1) % outputs] = hits, 100 - hits
        maps = rng.integers(0, outputs + 1, (2, 8, 8)).astype(np.int16)
    else:
        true = np.random.default_rng(5).random((TILES, outputs))
        true = (true > 0.5).astype(float) if task.kind == "multilabel" else true
        units = np.stack([right * true + (1 - right) * rng.random((TILES, outputs)), true], axis=1)
        maps = np.zeros((2, outputs), np.float32)
    scores = kind_of(task).scores(units, np.full(outputs, 0.5))
    values = scores.values | {"loss": 1 - right}
    curve = [
        {"epoch": epoch, "train_loss": 1.0 / epoch, "validation_loss": 1.0, **scores.values} for epoch in (1, 2, 3)
    ]
    head = {"segmentation": "conv", "multilabel": "linear", "regression": "mlp"}[task.kind]
    told = [encoder, protocol, head, seed, fraction, 1e-3, 2, values, values, scores.by_output, curve, 1.5, units, maps]
    return Result(*told, provenance={"epochs": 30, "encoder": encoder} | settings)


def write_run(folder: Path, name: str, results: list[Result], seen: bool = False, **changes: object) -> Path:
    task = get_task(name)
    rng = np.random.default_rng(0)
    run = RunResults(
        task=task,
        encoders={
            "pretrained": {
                "name": "runs/mae-b",
                "sha256": "a" * 64,
                "architecture": "spec_vit_base",
                "objective": "mae",
            },
            "random": {"name": "spec_vit_base, untrained", "sha256": "random", "architecture": "spec_vit_base"},
        },
        data={
            "tiles": {"train": 60, "val": 20, "test": TILES},
            "labels": {"train": "1" * 64, "val": "2" * 64, "test": "3" * 64},
            "sensor": task.sensor,
            "split": "published",
            "window": 8,
        },
        results=results,
        tiles=[f"tile-{number}" for number in range(TILES)],
        places=[f"place-{number}" for number in range(TILES)],
        seen=[number < 10 for number in range(TILES)] if seen else None,
        baseline=[0.5] * len(task.outputs) if task.kind == "regression" else None,
        cost={"features": 3.0, "pretrained, frozen": 5.0},
        rgb=rng.integers(0, 255, (2, 8, 8, 3)).astype(np.uint8),
        labels=rng.integers(0, 3, (2, 8, 8)).astype(np.int16),
    )
    folder.mkdir(parents=True)
    write_results(folder, replace(run, **changes))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks; segmentation's seeds in folders of their own, as an array job leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    cdl, corine, soil = (get_task(name) for name in ("enmap_cdl", "enmap_corine", "hyperview"))
    for seed in (0, 1, 2):
        results = [_result(cdl, "pretrained", seed, 0.8), _result(cdl, "random", seed, 0.6)]
        results += [_result(cdl, "pretrained", seed, 0.7, fraction=0.1), _result(cdl, "pretrained", seed, 0.5, "full")]
        write_run(folder / "cdl" / f"seed-{seed}", "enmap_cdl", results, seen=True)
    write_run(
        folder / "corine", "enmap_corine", [_result(corine, "pretrained", 0, 0.7), _result(corine, "random", 0, 0.7)]
    )
    write_run(folder / "soil", "hyperview", [_result(soil, "pretrained", 0, 0.9), _result(soil, "random", 0, 0.2)])
    return folder


def test_results_come_back_as_they_were_written(runs):
    run = read_results(runs / "cdl" / "seed-1")
    before = _result(get_task("enmap_cdl"), "pretrained", 1, 0.8)
    after = run.results[0]
    assert (after.test, after.curve, after.by_output) == (before.test, before.curve, before.by_output)
    np.testing.assert_array_equal(after.statistics, before.statistics)
    assert run.task == get_task("enmap_cdl")


def test_parts_come_back_as_they_were_written(tmp_path):
    part = tmp_path / "parts" / "one.npz"
    assert read_part(part) is None
    before = [_result(get_task("enmap_corine"), "random", seed, 0.4) for seed in (3, 4)]
    write_part(part, before)
    after = read_part(part)
    assert after is not None
    for one, two in zip(before, after, strict=True):
        assert (one.seed, one.test) == (two.seed, two.test)
        np.testing.assert_array_equal(one.statistics, two.statistics)


def test_seeds_of_several_runs_are_one_row(runs):
    (cdl,) = [report for report in _reports(runs) if report.task.name == "enmap_cdl"]
    rows = {(row.identity[:6], row.protocol, row.fraction): row for row in cdl.rows}
    best = rows["aaaaaa", "frozen", 1.0]
    assert [one.seed for one in best.results] == [0, 1, 2]
    expected = [_result(cdl.task, "pretrained", seed, 0.8).test["mIoU"] for seed in (0, 1, 2)]
    assert best.mean("mIoU") == pytest.approx(np.mean(expected))
    assert best.deviation("mIoU") == pytest.approx(np.std(expected, ddof=1))
    assert best.interval[0] < best.mean("mIoU") < best.interval[1]
    assert cdl.best() is best
    assert best.is_better
    assert not rows["random", "frozen", 1.0].is_better
    assert rows["aaaaaa", "full", 1.0].p is None  # has no twin


def test_lower_scores_are_better_where_they_are(runs):
    (soil,) = [report for report in _reports(runs) if report.task.name == "hyperview"]
    assert soil.best().identity != "random"
    assert soil.best().is_better


def test_what_is_no_better_is_not_flagged(runs):
    (corine,) = [report for report in _reports(runs) if report.task.name == "enmap_corine"]
    assert not any(row.is_better for row in corine.rows)


def test_files_are_written_and_the_page_is_whole(runs, tmp_path, capsys):
    assert main(["report", str(runs), "--output", str(tmp_path / "out")]) == 0
    assert "EnMAP-CDL: mIoU" in capsys.readouterr().out
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert not page.outside
    assert page.images
    assert all(image["alt"] for image in page.images)
    for text in ("EnMAP-CORINE", "With fewer labels", "Confusion", "corn", "Hyperview score"):
        assert text in page.text
    assert "Scenes of 10 of 24 test tiles were in the pretraining shards" in page.text
    lines = list(csv.DictReader((tmp_path / "out" / "report.csv").open()))
    chosen = [
        line
        for line in lines
        if (line["task"], line["protocol"], line["metric"], line["fraction"]) == ("enmap_cdl", "frozen", "mIoU", "1.0")
    ]
    assert [line["better"] for line in chosen] == ["True", "False"]
    expected = np.mean([_result(get_task("enmap_cdl"), "pretrained", seed, 0.8).test["mIoU"] for seed in (0, 1, 2)])
    assert float(chosen[0]["mean"]) == pytest.approx(expected)
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert f"**{100 * expected:.1f} ± " in markdown


CDL = get_task("enmap_cdl")
ENCODER = {"name": "run/encoder.safetensors", "architecture": "spec_vit_base"}


def _encoders(letter: str = "a") -> dict[str, dict[str, object]]:
    twin = {"name": "spec_vit_base, untrained", "architecture": "spec_vit_base", "sha256": "0" * 64, "untrained": True}
    return {"pretrained": ENCODER | {"sha256": letter * 64}, "random": twin}


def _names(rows: list[Row]) -> list[str]:
    return [f"{row.label} · {row.name}" for row in rows]


def test_results_of_different_settings_are_never_seeds_of_one_row(tmp_path):
    """Named by what differs, in one order, and by nothing else."""
    for number, settings in enumerate(({"epochs": 30}, {"epochs": 50}, {"epochs": 50, "train labels": "b" * 64})):
        told = {"train labels": "c" * 64, "views": 8} | settings
        results = [_result(CDL, "pretrained", number, 0.6 + number / 10, **told)]
        write_run(tmp_path / str(number), "enmap_cdl", results, encoders=_encoders())
    (report,) = _reports(tmp_path)
    assert _names(report.rows) == [
        "run/encoder.safetensors · frozen, conv · 30 epochs · train labels cccccc",
        "run/encoder.safetensors · frozen, conv · 50 epochs · train labels cccccc",
        "run/encoder.safetensors · frozen, conv · 50 epochs · train labels bbbbbb",
    ]
    assert [len(row.results) for row in report.rows] == [1, 1, 1]
    again = _reports(*(tmp_path / str(number) for number in (2, 0, 1)))[0]
    assert sorted(_names(again.rows)) == sorted(_names(report.rows))


def test_encoders_of_one_name_are_told_apart_by_their_weights_and_one_of_two_names_is_one(tmp_path):
    for seed, (folder, letter) in enumerate((("one", "a"), ("two", "b"), ("three", "a"))):
        encoders = _encoders(letter)
        if folder == "three":
            encoders["pretrained"]["name"] = "copy/of-it.safetensors"
        write_run(tmp_path / folder, "enmap_cdl", [_result(CDL, "pretrained", seed, 0.8)], encoders=encoders)
    (report,) = _reports(tmp_path / "one", tmp_path / "two", tmp_path / "three")
    assert [(row.label, len(row.results)) for row in report.rows] == [
        ("run/encoder.safetensors (aaaaaa)", 2),
        ("run/encoder.safetensors (bbbbbb)", 1),
    ]


def test_untrained_networks_of_other_weights_are_other_rows(tmp_path):
    for seed, letter in enumerate("de"):
        encoders = _encoders()
        encoders["random"]["sha256"] = letter * 64
        results = [_result(CDL, "random", seed, 0.4 + seed / 10), _result(CDL, "pretrained", 7, 0.8)]
        write_run(tmp_path / letter, "enmap_cdl", results, encoders=encoders)
    (report,) = _reports(tmp_path)
    assert [row.label for row in report.rows] == [
        "run/encoder.safetensors",
        "spec_vit_base, untrained (dddddd)",
        "spec_vit_base, untrained (eeeeee)",
    ]


def test_any_two_encoders_are_tested_and_the_better_one_is_named(tmp_path, capsys):
    """As are two settings of one encoder; p are corrected for all of them."""
    for letter, right in (("a", 0.8), ("b", 0.6), ("c", 0.6)):
        results = [_result(CDL, "pretrained", seed, right) for seed in (0, 1)]
        if letter == "a":
            results += [_result(CDL, "pretrained", seed, 0.5, epochs=1) for seed in (0, 1)]
        write_run(tmp_path / letter, "enmap_cdl", results, encoders=_encoders(letter))
    (report,) = _reports(tmp_path)
    tested = {
        (one.first.identity[0], one.second.identity[0]): one
        for one in report.comparisons
        if one.first.rest == one.second.rest
    }
    assert set(tested) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert len(report.comparisons) == 4
    assert tested["a", "b"].p < 0.05
    assert tested["a", "b"].difference > 0.1
    assert tested["b", "c"].p > 0.05
    assert all(row.p is None for row in report.rows)
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "two encoders in one setting, and one encoder in two" in text
    assert "(aaaaaa) · frozen, conv · 30 epochs" in text
    assert "Comparisons" in Page((tmp_path / "report.html").read_text()).text


@pytest.mark.parametrize("what", ["labels", "tiles", "classes"])
def test_what_can_not_be_compared_is_apart_and_said(tmp_path, what):
    changes: dict[str, dict[str, object]] = {
        "labels": {
            "data": {
                "labels": {"test": "d" * 64},
                "tiles": {"train": 1, "val": 1, "test": TILES},
                "sensor": "enmap",
                "split": "location",
                "window": 8,
            }
        },
        "tiles": {"tiles": [f"other-{number}" for number in range(TILES)]},
        "classes": {"task": CDL.model_copy(update={"ignore": [77]})},
    }
    write_run(tmp_path / "one", "enmap_cdl", [_result(CDL, "pretrained", 0, 0.8)])
    write_run(tmp_path / "two", "enmap_cdl", [_result(CDL, "pretrained", 1, 0.7)], **changes[what])
    reports = _reports(tmp_path)
    assert len({report.title for report in reports}) == 2
    assert [len(report.rows) for report in reports] == [1, 1]
    assert not any(report.comparisons for report in reports)
    assert main(["report", str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert "enmap_cdl: runs differ in classes, test tiles or test labels, so that these can't be compared" in page.text


def test_the_same_results_given_twice_count_once(tmp_path):
    folder = write_run(tmp_path / "one", "enmap_cdl", [_result(CDL, "pretrained", seed, 0.8) for seed in (0, 1)])
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "link").symlink_to(folder)
    (report,) = _reports(tmp_path / "copy", folder, tmp_path / "link", tmp_path / "one" / ".." / "one", tmp_path)
    assert [len(row.results) for row in report.rows] == [2]
    assert len(report.costs) == 1


def test_other_scores_of_the_same_seed_are_another_row(tmp_path):
    for name, right in (("one", 0.8), ("two", 0.7)):
        write_run(tmp_path / name, "enmap_cdl", [_result(CDL, "pretrained", seed, right) for seed in (0, 1)])
    (report,) = _reports(tmp_path)
    assert [row.name for row in report.rows] == [f"frozen, conv · run {tmp_path / name}" for name in ("one", "two")]


def _as_earlier_version(folder: Path, config: str | None) -> None:
    path = folder / "results.json"
    content = json.loads(path.read_text())
    content["format"] = 1
    del content["data"]["labels"]
    for one in content["results"]:
        del one["provenance"]
    path.write_text(json.dumps(content))
    if config is not None:
        (folder / "config.yaml").write_text(config)


def test_results_of_an_earlier_version_are_read_and_not_mixed_with_others(tmp_path):
    """Their settings are those of the config beside them; without it, nothing is known to agree."""
    config = (
        "{{frozen: {{epochs: {}}}, full: {{}}, recipe: ours, select: score, data: {{bands: same}}, "
        "engine: {{precision: fp32}}, run: {{seed: 0}}}}"
    )
    epochs = {"a": 20, "b": 20, "c": 40, "d": None, "e": None}
    for seed, (name, count) in enumerate(epochs.items()):
        write_run(tmp_path / name, "enmap_cdl", [_result(CDL, "pretrained", seed, 0.8)])
        _as_earlier_version(tmp_path / name, None if count is None else config.format(count))
    write_run(tmp_path / "new", "enmap_cdl", [_result(CDL, "pretrained", 9, 0.8)])
    reports = _reports(tmp_path)
    found = sorted([one.seed for one in row.results] for report in reports for row in report.rows)
    assert found == [[0, 1], [2], [3], [4], [9]]
    assert len({(report.title, row.name) for report in reports for row in report.rows}) == 5


def test_undefined_scores_look_undefined(tmp_path):
    result = _result(CDL, "pretrained", 0, 0.8)
    nothing = np.zeros_like(result.statistics)
    scores = kind_of(get_task("enmap_cdl")).scores(nothing)
    undefined = replace(result, test={"loss": 0.1}, by_output=scores.by_output, statistics=nothing, seed=1)
    write_run(tmp_path / "one", "enmap_cdl", [replace(undefined, protocol="full"), result])
    assert main(["report", str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert "nan" not in page.text
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert [line.split("|")[5].strip() for line in lines if "full, conv" in line and "100 %" in line] == ["–"]
    (row,) = [
        line
        for line in csv.DictReader((tmp_path / "report.csv").open())
        if line["protocol"] == "full" and line["metric"] == "mIoU"
    ]
    assert (row["mean"], row["low"]) == ("", "")


def test_runs_that_have_not_ended_and_results_that_can_not_be_read_are_said(runs, tmp_path, capsys):
    shutil.copytree(runs / "cdl", tmp_path / "cdl")
    config = "task: enmap_cdl\ncompare_random: true\nprotocol: [knn, full]\nfractions: [1.0, 0.1]\n"
    failed = tmp_path / "failed"
    failed.mkdir()
    (failed / "config.yaml").write_text(config)
    (failed / "status.json").write_text('{"status": "failed", "step": 5, "steps": 8, "reason": "diverged"}')
    pretraining = tmp_path / "pretraining"
    pretraining.mkdir()
    (pretraining / "config.yaml").write_text("objective: {name: mae}\n")
    assert main(["report", str(tmp_path)]) == 0
    told = f"{failed}: not finished (failed, diverged): 5 of 8 parts done; missing: random full, random knn of 10 %"
    assert told in capsys.readouterr().out
    assert told in Page((tmp_path / "report.html").read_text()).text

    cut = tmp_path / "cdl" / "seed-0" / "results.json"
    cut.write_bytes(cut.read_bytes()[:1000])
    newer = tmp_path / "cdl" / "seed-1" / "results.json"
    newer.write_text(newer.read_text().replace('"format": 2', '"format": 3'))
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 2
    assert f"error: {cut.parent}: damaged results" in said.err
    assert f"error: {newer}: format 3, this version reads 2 and earlier ones" in said.err
    assert "seed-0: damaged results" in (tmp_path / "report.md").read_text()

    shutil.rmtree(tmp_path / "cdl")
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {failed}: not finished")


def test_folders_without_results_are_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such folder\n"
    assert main(["report", str(tmp_path)]) == 2
    assert "no results.json here or below" in capsys.readouterr().err
    folder = write_run(tmp_path / "one", "enmap_cdl", [_result(CDL, "pretrained", 1, 0.4)])
    (folder / "statistics.npz").write_bytes(b"PK")
    assert main(["report", str(folder)]) == 2
    assert "damaged results" in capsys.readouterr().err


def test_synthetic_tasks_and_few_places_are_said(tmp_path, capsys):
    write_run(tmp_path / "demo", "sample_materials", [_result(get_task("sample_materials"), "pretrained", 0, 0.8)])
    assert main(["report", str(tmp_path / "demo")]) == 0
    assert "synthetic tiles; the numbers say that the path works, nothing more." in capsys.readouterr().out
