"""What a bound on the error of shards costs: features, pretraining losses and downstream scores against lossless ones.

Packs the tiles of a labeled task without loss and with each bound, pretrains a tiny Spec. ViT by MAE on each with the
same seeds (the same order of samples, masks and initial weights), and evaluates each encoder by nearest neighbors and
frozen heads on labeled tiles from the shards that it was pretrained on. Finished runs are kept, so the same command
continues an interrupted study.

    python -m tools.study_bounds --images TILES --labels LABELS --splits SPLITS --task TASK OUT
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from finetune.encoders.model_file import load_task_model
from finetune.evaluation.results import RunResults, read_results
from finetune.metrics.statistics import bootstrap_scores, draws_for, interval, paired_test, smallest_p
from finetune.tasks.kinds.kind import TaskKind, kind_of
from pretrain.metrics.json_lines import METRICS_FILE, read_records
from shards.cli import Parser, positive, run_command
from shards.files.atomic import write_atomic
from shards.read.reader import TileDataset, open_dataset
from tools.study_runs import PRETRAIN, head, run_step

LOSSLESS = "lossless"
PROTOCOLS = ("knn", "frozen")
LAST = 100
"""Number of steps at the end of a pretraining whose losses are averaged."""


@dataclass(frozen=True)
class Bounded:
    """The dataset of one bound, and the runs on it, a folder for each seed."""

    bound: str
    shards: Path
    runs: list[Path]

    @cached_property
    def tiles(self) -> TileDataset:
        """The dataset."""
        return open_dataset(self.shards)

    @cached_property
    def losses(self) -> np.ndarray:
        """The mean loss of the last steps of each pretraining."""
        logs = [read_records(run / "pretrain" / METRICS_FILE) for run in self.runs]
        return np.array([np.mean([record["loss"] for record in log if "loss" in record][-LAST:]) for log in logs])

    @cached_property
    def results(self) -> list[RunResults]:
        """The results of each evaluation."""
        return [read_results(run / "evaluation") for run in self.runs]

    def statistics(self, protocol: str) -> list[np.ndarray]:
        """Return the statistics of the test tiles by seed."""
        return [result.statistics for run in self.results for result in run.results if result.protocol == protocol]

    def scores(self, protocol: str, metric: str) -> np.ndarray:
        """Return a test score by seed."""
        found = [result.test[metric] for run in self.results for result in run.results if result.protocol == protocol]
        return np.array(found)


def main(argv: list[str] | None = None) -> int:
    """Run the study and print its table."""
    parser = Parser(prog="python -m tools.study_bounds", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of all runs")
    for name in ("images", "labels", "splits"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of the task's {name}")
    parser.add_argument("--task", default="enmap_potsdam", help="name of the task (default: %(default)s)")
    parser.add_argument(
        "--bounds", nargs="+", default=["noise/4", "noise/2", "3", "30"], help="bounds as of `pack --max-error`"
    )
    parser.add_argument("--seeds", type=positive, default=5, help="pretrainings with each bound (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=500, help="steps of pretraining (default: %(default)s)")
    parser.add_argument("--size", type=positive, default=32, help="side of a crop in pixels (default: %(default)s)")
    parser.set_defaults(run=_study)
    return run_command(parser, argv)


def _study(arguments: argparse.Namespace) -> None:
    datasets = [_prepare(arguments, bound) for bound in (LOSSLESS, *arguments.bounds)]
    for seed in range(arguments.seeds):
        for dataset in datasets:
            _run(arguments, dataset, seed)
    text = "\n".join(_table(datasets))
    write_atomic(arguments.out / "table.md", text + "\n")
    print(text)


def _prepare(arguments: argparse.Namespace, bound: str) -> Bounded:
    """Pack the tiles, and list the keys of those that are pretrained on: all but the test tiles."""
    name = bound.replace("/", "_")
    shards = arguments.out / f"shards-{name}"
    if not (shards / "manifest.json").exists():
        options = ["--labels", arguments.labels, "--splits", arguments.splits]
        options += [] if bound == LOSSLESS else ["--max-error", bound]
        run_step(f"pack {bound}", "-m", "shards", "pack", arguments.images, shards, *options)
    dataset = Bounded(bound, shards, [arguments.out / f"{name}-{seed}" for seed in range(arguments.seeds)])
    table = dataset.tiles.table
    keys = [key.decode() for key in table["key"][table["split"] != b"test"]]
    write_atomic(arguments.out / f"keep-{name}.txt", "\n".join(keys) + "\n")
    return dataset


def _run(arguments: argparse.Namespace, dataset: Bounded, seed: int) -> None:
    """Pretrain and evaluate one encoder."""
    folder = dataset.runs[seed]
    if (folder / "evaluation/results.json").exists():
        return
    keep = arguments.out / f"keep-{dataset.bound.replace('/', '_')}.txt"
    options = [f"train.steps={arguments.steps}", f"model.image_size={arguments.size}", "log.every=1"]
    options += [f"data.shards={dataset.shards}", f"data.view.keep={keep}", f"run.seed={seed}"]
    config = ["--config", "configs/pretrain/mae/demo.yaml", f"run.dir={folder / 'pretrain'}"]
    run_step(folder.name, "launch/pretrain.py", *config, *PRETRAIN, *options)
    options = [f"checkpoint={folder / 'pretrain/encoder.safetensors'}", f"data.shards={dataset.shards}"]
    options += ["data.images=null", "data.labels=null", "data.splits=null", f"seeds=[{seed}]", "compare_random=false"]
    options += [f"task={arguments.task}", "protocol=[knn, frozen]", "knn.neighbors=10", "run.threads=1"]
    config = ["--config", "configs/finetune/demo.yaml", f"run.dir={folder / 'evaluation'}"]
    run_step(folder.name, "launch/finetune.py", *config, *options)


def _table(datasets: list[Bounded]) -> Iterator[str]:
    """Yield a Markdown table: each bound against lossless shards."""
    lossless, task = datasets[0], datasets[0].results[0].task
    kind, places = kind_of(task), datasets[0].results[0].places
    yield (
        f"{task.title or task.name}: {len(lossless.runs)} seeds, {len(set(places))} test places (smallest p "
        f"{smallest_p(places, draws_for(1)):.3f}); differences from lossless, with 95 % intervals over places or seeds"
    )
    yield ""
    scores = [f"{protocol} {kind.primary}, difference, p" for protocol in PROTOCOLS]
    yield from head("shards", ["size", "largest error, DN", "features differ by", "MAE loss, difference", *scores])
    for dataset in datasets:
        cells = [f"{dataset.tiles.table['length'].sum() / lossless.tiles.table['length'].sum():.2f}"]
        cells += [f"{_largest_error(lossless, dataset)}", f"{100 * _feature_change(lossless, dataset):.2f} %"]
        cells.append(_loss_cell(lossless, dataset))
        cells += [_score_cell(lossless, dataset, kind, protocol, places) for protocol in PROTOCOLS]
        yield f"| {dataset.bound} | {' | '.join(cells)} |"


def _largest_error(lossless: Bounded, dataset: Bounded) -> int:
    pairs = ((lossless.tiles[row].astype(int), dataset.tiles[row].astype(int)) for row in range(len(lossless.tiles)))
    return max(int(np.abs(first - second).max()) for first, second in pairs)


@torch.no_grad()
def _feature_change(lossless: Bounded, dataset: Bounded) -> float:
    """Return how far the features of an encoder move when it sees bounded tiles: the root mean square of the change, of
    all patches of all tiles, in units of the features' standard deviation."""
    model = load_task_model(lossless.runs[0] / "pretrain/encoder.safetensors")
    size = model.description.image_size
    first, second = (
        torch.cat([model.scores(torch.from_numpy(tiles[row][None, :, :size, :size])) for row in range(len(tiles))])
        for tiles in (lossless.tiles, dataset.tiles)
    )
    spread = first.std((0, 2, 3), keepdim=True)
    return float(((first - second) / spread).square().mean().sqrt())


def _loss_cell(lossless: Bounded, dataset: Bounded) -> str:
    """Return the mean loss, and the difference with the interval of a bootstrap over seeds."""
    changes = dataset.losses - lossless.losses
    if dataset is lossless:
        return f"{dataset.losses.mean():.4f}"
    drawn = np.random.default_rng(0).integers(0, len(changes), (1000, len(changes)))
    low, high = interval(changes[drawn].mean(1))
    return f"{dataset.losses.mean():.4f}, {changes.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def _score_cell(lossless: Bounded, dataset: Bounded, kind: TaskKind, protocol: str, places: list[str]) -> str:
    """Return the mean score, and the difference with its interval and the p-value of the paired test."""
    score = dataset.scores(protocol, kind.primary).mean()
    if dataset is lossless:
        return f"{score:.3f}"
    ours, theirs = dataset.statistics(protocol), lossless.statistics(protocol)
    draws = [bootstrap_scores(kind.resampled, statistics, places) for statistics in (ours, theirs)]
    low, high = interval(draws[0] - draws[1])
    change = score - lossless.scores(protocol, kind.primary).mean()
    p = paired_test(kind.resampled, ours, theirs, places, draws_for(1))
    return f"{score:.3f}, {change:+.3f} [{low:+.3f}, {high:+.3f}], {p:.2f}"


if __name__ == "__main__":
    sys.exit(main())
