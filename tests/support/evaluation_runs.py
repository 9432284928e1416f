"""Synthetic evaluation results for tests of the report, and a parser of its page."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from finetune.evaluation.results import Result, RunResults, write_results
from finetune.report.collect import collect, find_runs, read_runs
from finetune.report.rows import TaskReport
from finetune.tasks import Task, get_task
from finetune.tasks.kinds.kind import kind_of

TILES = 24
VOID = {"meta", "img", "br", "line", "circle", "polyline", "polygon"}

ENCODER = {"name": "run/encoder.safetensors", "architecture": "spec_vit_base"}


def make_encoders(letter: str = "a") -> dict[str, dict[str, object]]:
    """Return the headers of an encoder, whose hash repeats one letter, and of its random-init baseline."""
    baseline = {
        "name": "spec_vit_base, random init",
        "architecture": "spec_vit_base",
        "sha256": "0" * 64,
        "untrained": True,
    }
    return {"pretrained": ENCODER | {"sha256": letter * 64}, "random": baseline | {"untrained": True}}


class Page(HTMLParser):
    """The text, images and links of a page; fails on unclosed tags."""

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


def collect_reports(*folders: Path) -> list[TaskReport]:
    """Collect the reports of all runs below some folders."""
    runs, problems = read_runs(find_runs(folders))
    assert not problems
    return collect(runs)


def make_result(
    task: Task,
    encoder: str,
    seed: int,
    right: float,
    protocol: str = "frozen",
    fraction: float = 1.0,
    **settings: object,
) -> Result:
    """Return the result of one seed; ``right`` is its approximate score, from 0 to 1."""
    rng = np.random.default_rng([seed, int(1000 * right)])
    outputs = len(task.outputs)
    kind = kind_of(task)
    maps = np.zeros((2, *((outputs,) if kind.form != "class" else ())), kind.label_type)
    if task.kind.name == "segmentation":
        statistics = np.zeros((TILES, outputs, outputs), np.int32)
        for tile in range(TILES):
            for label in range(outputs):
                hits = rng.binomial(100, right)
                statistics[tile, label, label], statistics[tile, label, (label + 1) % outputs] = hits, 100 - hits
        maps = rng.integers(0, outputs + 1, (2, 8, 8)).astype(np.int16)
    elif task.kind.name == "classification":
        true = np.random.default_rng(5).integers(0, outputs, TILES)
        statistics = np.stack([np.where(rng.random(TILES) < right, true, (true + 1) % outputs), true], axis=1)
    elif task.kind.name == "pixel_regression":
        error = (1 - right) * (1 + rng.random((TILES, outputs)))
        ones = np.ones((TILES, outputs))
        statistics = np.stack([64 * ones, 64 * error, 64 * error**2, 0 * ones, 64 * ones], axis=1)
        maps = rng.random((2, outputs, 8, 8)).astype(np.float32)
    else:
        true = np.random.default_rng(5).random((TILES, outputs))
        true = (true > 0.5).astype(float) if task.kind.name == "multilabel" else true
        statistics = np.stack([right * true + (1 - right) * rng.random((TILES, outputs)), true], axis=1)
    scores = kind.scores(statistics, np.full(outputs, 0.5))
    values = scores.values | {"loss": 1 - right}
    curve = [
        {"epoch": epoch, "train_loss": 1.0 / epoch, "validation_loss": 1.0, **scores.values} for epoch in (1, 2, 3)
    ]
    head = kind.published_heads[0]
    told = [
        encoder,
        protocol,
        head,
        seed,
        fraction,
        1e-3,
        2,
        values,
        values,
        scores.by_output,
        curve,
        1.5,
        statistics,
        maps,
    ]
    return Result(*told, provenance={"epochs": 30, "encoder": encoder} | settings)


def write_run(folder: Path, name: str, results: list[Result], seen: bool = False, **changes: object) -> Path:
    """Write the results of a run, with changes to its header; return the folder."""
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
            "random": {"name": "spec_vit_base, random init", "sha256": "random", "architecture": "spec_vit_base"},
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
        baseline=[0.5] * len(task.targets) or None,
        cost={"features": 3.0, "pretrained, frozen": 5.0},
        rgb=rng.integers(0, 255, (2, 8, 8, 3)).astype(np.uint8),
        labels=results[0].maps if task.targets else rng.integers(0, 3, (2, 8, 8)).astype(np.int16),
    )
    folder.mkdir(parents=True)
    write_results(folder, replace(run, **changes))
    return folder
