"""Does pretraining help? Encoders and models on spectra, on every task whose real labels are at hand.

Every seed pretrains a small encoder by wavelength on the real tiles of all sensors in one run, without the test tiles
of any task, and evaluates it and the initial weights it started from, with heads of this seed. Raw spectra and models
on spectra are evaluated beside them. Finished steps are kept: the same command continues an interrupted study, also
with more seeds or protocols.

    python -m tools.study OUT --potsdam FOLDER --indian-pines FILE... --jasper-ridge FILE... --unlabeled FILE...
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.baselines.registry import SPECTRA
from finetune.evaluation.results import Result, read_results
from finetune.evaluation.runs import BASELINE
from finetune.metrics.metric import lower_is_better
from finetune.metrics.statistics import bootstrap_interval, bootstrap_scores, draws_for, holm, interval, paired_test
from finetune.tasks import Task, get_task
from finetune.tasks.kinds.kind import TaskKind, kind_of
from shards.cli import Parser, positive, run_command
from shards.config import REPOSITORY
from shards.files.atomic import write_atomic
from tools.study_runs import PRETRAIN, cell, head, run_step

SCENES = ("indian_pines", "jasper_ridge")
WEIGHTS = {"enmap_potsdam": 4, "indian_pines": 4, "jasper_ridge": 2}
"""Shares of the samples; each unlabeled file has a share of 1."""

ENCODER = (
    "data.shards=null",
    "model.stem=wave",
    "model.image_size=8",
    "model.patch_size=1",  # labels are of single pixels
    "model.bn_group=4",
    "objective.ignore_nodata=true",
    "augment.sensors={own: 1, subset: 1, range: 1, responses: 1}",
)
"""Settings of the pretraining, in addition to `tools.study_runs.PRETRAIN`."""

PROTOCOLS = ("knn", "shift", "frozen", "adapter", "blocks", "lora", "full")
EVALUATION = (
    "run.threads=1",
    "knn.neighbors=10",
    "shift.test=[odd, vnir, sentinel2]",
    "frozen.heads=[linear]",
    "frozen.lrs=[1e-3, 1e-2, 1e-1]",
    "frozen.batch=32",
    "full.head=linear",
    "full.lrs=[3e-4]",
    "full.evaluate_every=2",
    "full.warmup_epochs=1",
    "full.crop_scale=null",  # crops are enlarged, which mixes the labels of neighboring pixels
)
EPOCHS = {"enmap_potsdam": (100, 4), "indian_pines": (100, 10), "jasper_ridge": (1000, 20)}
"""Epochs of heads, and of training through the encoder; values take longer than classes to fit."""

Rows = dict[tuple[str, str], list[Result]]
"""Results by encoder and protocol, or by `SPECTRA` and model: one for each seed."""


@dataclass(frozen=True)
class Labeled:
    """The tiles of a task: folders of images, labels and lists of the splits."""

    task: Task
    images: Path
    labels: Path
    splits: Path


@dataclass(frozen=True)
class Findings:
    """All results of a task."""

    task: Task
    places: Sequence[str]
    rows: Rows

    @property
    def kind(self) -> TaskKind:
        """The kind of the task."""
        return kind_of(self.task)

    def statistics(self, row: tuple[str, str]) -> list[np.ndarray]:
        """Return the statistics of the test tiles for each seed."""
        return [result.statistics for result in self.rows[row]]

    def mean(self, row: tuple[str, str], split: str = "test") -> float:
        """Return the primary score, averaged over seeds; higher is better."""
        sign = -1 if lower_is_better(self.kind.primary) else 1
        return sign * float(np.mean([getattr(result, split)[self.kind.primary] for result in self.rows[row]]))

    def best(self, encoder: str, split: str) -> tuple[str, str]:
        """Return the best row of an encoder on the tiles of a split, all of whose bands it sees."""
        rows = [row for row in self.rows if row[0] == encoder and not row[1].startswith("shift")]
        return max(rows, key=lambda row: self.mean(row, split))


def main(argv: list[str] | None = None) -> int:
    """Run the study and print its tables."""
    parser = Parser(prog="python -m tools.study", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of all runs")
    parser.add_argument("--potsdam", type=Path, required=True, help="folder with images/ and labels/ of enmap_potsdam")
    for name in SCENES:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=Path, nargs="+", required=True, help="files of the scene"
        )
    parser.add_argument("--unlabeled", type=Path, nargs="*", default=[], help="images to pretrain on as well")
    parser.add_argument("--seeds", type=positive, default=5, help="encoders with their heads (default: %(default)s)")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="(default: all)")
    parser.add_argument("--evaluate", nargs="+", choices=EPOCHS, default=list(EPOCHS), help="tasks (default: all)")
    parser.add_argument("--steps", type=positive, default=1000, help="steps of pretraining (default: %(default)s)")
    parser.add_argument("--jobs", type=positive, default=1, help="seeds at a time, a core each (default: %(default)s)")
    parser.set_defaults(run=_study)
    return run_command(parser, argv)


def _study(arguments: argparse.Namespace) -> None:
    labeled = list(_labeled(arguments))
    sources = [_pack_without_test(one, arguments.out) for one in labeled]
    sources += [_pack_unlabeled(path, arguments.out) for path in arguments.unlabeled]
    labeled = [one for one in labeled if one.task.name in arguments.evaluate]
    with ThreadPoolExecutor(arguments.jobs) as jobs:
        list(jobs.map(lambda seed: _pretrain_and_evaluate(labeled, sources, arguments, seed), range(arguments.seeds)))
        list(jobs.map(lambda one: _evaluate_spectra(one, arguments), labeled))
    findings = [_read(one.task, arguments) for one in labeled]
    text = "\n\n".join("\n".join(part) for part in tables(findings))
    write_atomic(arguments.out / "tables.md", text + "\n")
    print(text)


def _labeled(arguments: argparse.Namespace) -> Iterator[Labeled]:
    splits = REPOSITORY / "configs/finetune/splits/enmap_potsdam"
    folder = arguments.potsdam
    yield Labeled(get_task("enmap_potsdam"), folder / "images", folder / "labels", splits)
    for name in SCENES:
        folder = arguments.out / "data" / name
        if not (folder / "splits/test.txt").exists():  # written last
            run_step(f"cut {name}", "-m", "finetune", "cut", name, *getattr(arguments, name), folder)
        yield Labeled(get_task(name), folder / "images", folder / "labels", folder / "splits")


def _pack_without_test(labeled: Labeled, out: Path) -> Path:
    """Pack the tiles that are not in the test split, labeled or not."""
    test = {Path(line).stem for line in (labeled.splits / "test.txt").read_text().split()}
    folder = out / "data" / f"{labeled.task.name}-pretraining"
    folder.mkdir(parents=True, exist_ok=True)
    for path in labeled.images.glob("*.tif"):
        if path.stem not in test:
            shutil.copyfile(path, folder / path.name)
    return _pack(folder, labeled.task.sensor, out / "shards" / labeled.task.name)


def _pack_unlabeled(path: Path, out: Path) -> Path:
    return _pack(path, path, out / "shards" / path.stem)


def _pack(source: Path, sensor: object, shards: Path) -> Path:
    if not (shards / "manifest.json").exists():
        run_step(f"pack {shards.name}", "-m", "shards", "pack", source, shards, "--sensor", sensor, "--workers", 1)
    return shards


def _pretrain_and_evaluate(
    labeled: Sequence[Labeled], sources: Sequence[Path], arguments: argparse.Namespace, seed: int
) -> None:
    encoder = _pretrain(arguments, sources, seed)
    for one in labeled:
        _evaluate(one, encoder, arguments, seed)


def _pretrain(arguments: argparse.Namespace, sources: Sequence[Path], seed: int) -> Path:
    """Pretrain an encoder on all sources, and return its file."""
    folder = arguments.out / f"pretrain-{seed}"
    encoder = folder / "encoder.safetensors"
    if not encoder.exists():
        listed = [{"shards": str(path.resolve()), "weight": WEIGHTS.get(path.name, 1)} for path in sources]
        run = [f"data.sources={json.dumps(listed)}", f"train.steps={arguments.steps}"]
        run += [f"run.dir={folder}", f"run.seed={seed}"]
        config = ["launch/pretrain.py", "--config", "configs/pretrain/mae/demo.yaml"]
        run_step(folder.name, *config, *PRETRAIN, *ENCODER, *run)
    return encoder


def _evaluate(labeled: Labeled, encoder: Path, arguments: argparse.Namespace, seed: int) -> None:
    """Evaluate an encoder and its initial weights, which follow from the seed; beside the first one, raw spectra."""
    folder = arguments.out / labeled.task.name / f"encoder-{seed}"
    frozen, full = EPOCHS[labeled.task.name]
    options = [f"run.seed={seed}", f"frozen.epochs={frozen}", f"full.epochs={full}", f"compare_raw={seed == 0}".lower()]
    _finetune(labeled, encoder, folder, arguments.protocols, [seed], *options)


def _evaluate_spectra(labeled: Labeled, arguments: argparse.Namespace) -> None:
    """Fit the models on spectra; they use no encoder, but a config names one."""
    folder = arguments.out / labeled.task.name / BASELINE
    encoder = arguments.out / "pretrain-0/encoder.safetensors"
    _finetune(labeled, encoder, folder, [BASELINE], range(arguments.seeds), "compare_random=false")


def _finetune(
    labeled: Labeled, encoder: Path, folder: Path, protocols: Sequence[str], seeds: Sequence[int], *options: str
) -> None:
    """Run an evaluation, unless its results have all protocols with all seeds."""
    if (folder / "results.json").exists():
        done = {(result.protocol.split()[0], result.seed) for result in read_results(folder).results}
        if done >= set(itertools.product(protocols, seeds)):
            return
    tiles = [f"data.{name}={getattr(labeled, name)}" for name in ("images", "labels", "splits")]
    run = [f"task={labeled.task.name}", f"run.dir={folder}", f"checkpoint={encoder}"]
    what = [f"protocol=[{','.join(protocols)}]", f"seeds={list(seeds)}"]
    command = ["launch/finetune.py", "--config", "configs/finetune/scene.yaml"]
    run_step(f"{labeled.task.name}: {folder.name}", *command, *tiles, *run, *what, *EVALUATION, *options)


def _read(task: Task, arguments: argparse.Namespace) -> Findings:
    """Collect the results of a task, also those of earlier commands with other protocols."""
    rows: Rows = {}
    for seed in range(arguments.seeds):
        for result in read_results(arguments.out / task.name / f"encoder-{seed}").results:
            if result.protocol != "shift to all":  # which is knn
                rows.setdefault((result.encoder, result.protocol), []).append(result)
    run = read_results(arguments.out / task.name / BASELINE)
    for result in run.results:
        if result.seed < arguments.seeds:
            rows.setdefault((SPECTRA, result.head), []).append(result)
    return Findings(task, run.places, rows)


def tables(findings: Sequence[Findings]) -> Iterator[list[str]]:
    """Yield a Markdown table for each task: encoders by protocol with their tests, then models on spectra."""
    for one in findings:
        pairs = [(row, ("random", row[1])) for row in one.rows if row[0] == "pretrained"]
        pairs += [(one.best("pretrained", "validation"), one.best(SPECTRA, "test"))]
        corrected = holm([_p(one, *pair, draws_for(len(pairs))) for pair in pairs])
        p_values = dict(zip(pairs, corrected, strict=True))
        yield list(_encoders(one, p_values))
        yield [*_spectra(one), "", _sentence(one, p_values)]


def _p(one: Findings, first: tuple[str, str], second: tuple[str, str], draws: int) -> float:
    return paired_test(one.kind.resampled, one.statistics(first), one.statistics(second), one.places, draws)


def _encoders(one: Findings, p_values: dict) -> Iterator[str]:
    title = f"{one.task.title or one.task.name}: {one.kind.primary}"
    yield from head(title, ["pretrained", "random init", "difference", "p"])
    for protocol in [protocol for encoder, protocol in one.rows if encoder == "pretrained"]:
        rows = ("pretrained", protocol), ("random", protocol)
        cells = [_score(one, row) for row in rows]
        p = p_values[rows]
        yield f"| {protocol} | {' | '.join(cells)} | {_difference(one, *rows)} | {p:.3f} |"


def _spectra(one: Findings) -> Iterator[str]:
    yield from head(f"{one.task.title or one.task.name}, spectra: {one.kind.primary}", ["score"])
    for row in one.rows:
        if row[0] in ("raw", SPECTRA):
            yield f"| {row[1]} | {_score(one, row)} |"


def _sentence(one: Findings, p_values: dict) -> str:
    """Compare the encoder's best row on the validation tiles with the baseline that is best on the test tiles."""
    first, second = one.best("pretrained", "validation"), one.best(SPECTRA, "test")
    p = p_values[first, second]
    return f"Best by validation, {first[1]}, minus {second[1]}: {_difference(one, first, second)}, p = {p:.3f}."


def _score(one: Findings, row: tuple[str, str]) -> str:
    values = np.array([result.test[one.kind.primary] for result in one.rows[row]])
    return cell(values, bootstrap_interval(one.kind.resampled, one.statistics(row), one.places))


def _difference(one: Findings, first: tuple[str, str], second: tuple[str, str]) -> str:
    values = [np.mean([result.test[one.kind.primary] for result in one.rows[row]]) for row in (first, second)]
    draws = [bootstrap_scores(one.kind.resampled, one.statistics(row), one.places) for row in (first, second)]
    low, high = interval(draws[0] - draws[1])
    return f"{values[0] - values[1]:+.3f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    sys.exit(main())
