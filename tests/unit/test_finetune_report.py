"""The report: seeds put together, tables with the right numbers, one page that needs nothing else."""

import csv
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from finetune.__main__ import main
from finetune.metrics import compute_scores
from finetune.report.rows import collect, find_runs
from finetune.results import Result, RunResults, read_part, read_results, write_part, write_results
from finetune.tasks import Task, get_task

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


def _result(
    task: Task, encoder: str, seed: int, right: float, protocol: str = "frozen", fraction: float = 1.0
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
    scores = compute_scores(task.kind, units, np.full(outputs, 0.5))
    values = scores.values | {"loss": 1 - right}
    curve = [
        {"epoch": epoch, "train_loss": 1.0 / epoch, "validation_loss": 1.0, **scores.values} for epoch in (1, 2, 3)
    ]
    head = {"segmentation": "conv", "multilabel": "linear", "regression": "mlp"}[task.kind]
    return Result(
        encoder, protocol, head, seed, fraction, 1e-3, 2, values, values, scores.by_output, curve, 1.5, units, maps
    )


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
    write_results(folder, run)
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
    np.testing.assert_array_equal(after.units, before.units)
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
        np.testing.assert_array_equal(one.units, two.units)


def test_seeds_of_several_runs_are_one_row(runs):
    (cdl,) = [report for report in collect(find_runs([runs])) if report.task.name == "enmap_cdl"]
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
    (soil,) = [report for report in collect(find_runs([runs])) if report.task.name == "hyperview"]
    assert soil.best().identity != "random"
    assert soil.best().is_better


def test_what_is_no_better_is_not_flagged(runs):
    (corine,) = [report for report in collect(find_runs([runs])) if report.task.name == "enmap_corine"]
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


def test_runs_that_do_not_go_together_are_one_line(runs, tmp_path, capsys):
    task = get_task("enmap_cdl")
    write_run(tmp_path / "twice", "enmap_cdl", [_result(task, "pretrained", 1, 0.4)])
    assert main(["report", str(runs), str(tmp_path / "twice")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: {tmp_path / 'twice'} and {runs / 'cdl' / 'seed-1'}: both have seed 1 of runs/mae-b"
    )
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "none: no results.json here or below" in capsys.readouterr().err
    (tmp_path / "twice" / "units.npz").write_bytes(b"PK")
    assert main(["report", str(tmp_path / "twice")]) == 2
    assert "damaged results" in capsys.readouterr().err


def test_synthetic_tasks_and_few_places_are_said(tmp_path, capsys):
    write_run(tmp_path / "demo", "sample_materials", [_result(get_task("sample_materials"), "pretrained", 0, 0.8)])
    assert main(["report", str(tmp_path / "demo")]) == 0
    assert "synthetic tiles; the numbers say that the path works, nothing more." in capsys.readouterr().out
