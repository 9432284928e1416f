"""Spectral shift of encoders that are pretrained alike: features of one sensor, asked for through the bands of others.

Pretrains a tiny Spec. ViT by MAE on the training and validation tiles of a labeled task, with each stem and several
seeds, and compares nearest neighbors across bands and the retrieval of the same place (protocol ``shift``) with those
of raw spectra. Finished runs are kept, so the same command continues an interrupted study.

    python -m tools.study_shift --images TILES --labels LABELS --splits SPLITS --task TASK OUT
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from finetune.evaluation.neighbors import SAME_PLACE, tested_bands
from finetune.evaluation.results import Result, read_results
from finetune.metrics.resampled import mean_of_tiles
from finetune.metrics.statistics import bootstrap_interval
from finetune.tasks.kinds.kind import TaskKind, kind_of
from shards.cli import Parser, positive, run_command
from shards.files.atomic import write_atomic
from shards.read.reader import open_dataset
from tools.study_runs import PRETRAIN, cell, head, run_step

VARIANTS: dict[str, tuple[str, ...]] = {
    "conv": (),
    "wave": ("model.stem=wave", "model.bn_group=4"),
    "wave, augmented": (
        "model.stem=wave",
        "model.bn_group=4",
        "augment.sensors={own: 1, subset: 1, range: 1, responses: 1}",
    ),
}
"""Settings of each encoder in addition to `tools.study_runs.PRETRAIN`."""

STEMS = ("conv", "wave")
"""Encoders whose initial weights are compared as well; others have the same."""

Study = dict[str, list[dict[str, Result]]]
"""Results by encoder, seed and bands of the test tiles."""

SHIFT = "[even,random_40,vnir,swir,prisma,sentinel2]"


def main(argv: list[str] | None = None) -> int:
    """Run the study and print its tables."""
    parser = Parser(prog="python -m tools.study_shift", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of all runs")
    for name in ("images", "labels", "splits"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of the task's {name}")
    parser.add_argument("--task", default="enmap_potsdam", help="name of the task (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=5, help="pretrainings of each encoder (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=500, help="steps of pretraining (default: %(default)s)")
    parser.add_argument("--size", type=positive, default=32, help="side of a crop in pixels (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="(default: all)")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time, of one thread each (default: 1)")
    parser.set_defaults(run=_study)
    return run_command(parser, argv)


def _study(arguments: argparse.Namespace) -> None:
    shards = _pack(arguments)
    runs = [(variant, seed) for seed in range(arguments.seeds) for variant in arguments.variants]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        folders = list(pool.map(lambda run: _evaluate(arguments, shards, *run), runs))
    study: Study = {variant: [] for variant in arguments.variants}
    for (variant, _), folder in zip(runs, folders, strict=True):
        study[variant].append(_read(folder, "pretrained"))
    for variant in filter(STEMS.__contains__, arguments.variants):
        study[f"{variant}, not pretrained"] = [_read(folders[runs.index((variant, 0))], "random")]
    study["raw spectra"] = [_read(folders[0], "raw")]
    run = read_results(folders[0])
    tables = [_scores(study, kind_of(run.task), run.places)]
    tables += [_retrieval(study, unit, run.places) for unit in ("tile", "patch")]
    text = "\n\n".join("\n".join(table) for table in tables)
    write_atomic(arguments.out / "table.md", text + "\n")
    print(text)


def _pack(arguments: argparse.Namespace) -> Path:
    """Pack the tiles, and list the keys of those that are pretrained on: all but the test tiles."""
    shards = arguments.out / "shards"
    if not (shards / "manifest.json").exists():
        options = ["--labels", arguments.labels, "--splits", arguments.splits]
        run_step("pack", "-m", "shards", "pack", arguments.images, shards, *options)
    table = open_dataset(shards).table
    keys = [key.decode() for key in table["key"][table["split"] != b"test"]]
    write_atomic(arguments.out / "keep.txt", "\n".join(keys) + "\n")
    return shards


def _evaluate(arguments: argparse.Namespace, shards: Path, variant: str, seed: int) -> Path:
    """Pretrain and evaluate one encoder; return the folder of its results."""
    folder = arguments.out / f"{variant.replace(', ', '-')}-{seed}"
    if not (folder / "shift/results.json").exists():
        sizes = [f"train.steps={arguments.steps}", f"model.image_size={arguments.size}"]
        data = [f"data.shards={shards}", f"data.view.keep={arguments.out / 'keep.txt'}"]
        run = [f"run.dir={folder / 'pretrain'}", f"run.seed={seed}"]
        options = [*PRETRAIN, *VARIANTS[variant], *sizes, *data, *run]
        run_step(folder.name, "launch/pretrain.py", "--config", "configs/pretrain/mae/demo.yaml", *options)
        tiles = [f"data.{name}={getattr(arguments, name)}" for name in ("images", "labels", "splits")]
        run = [f"run.dir={folder / 'shift'}", f"checkpoint={folder / 'pretrain/encoder.safetensors'}"]
        options = ["protocol=[shift]", f"shift.test={SHIFT}", "compare_raw=true", "knn.neighbors=10", "frozen.views=1"]
        command = ["launch/finetune.py", "--config", "configs/finetune/demo.yaml", f"task={arguments.task}"]
        run_step(folder.name, *command, *tiles, *run, *options, "run.threads=1")
    return folder / "shift"


def _read(folder: Path, encoder: str) -> dict[str, Result]:
    """Return the results of one encoder by band set."""
    results = [result for result in read_results(folder).results if result.encoder == encoder]
    return {str(tested_bands(result.protocol)): result for result in results}


def _scores(study: Study, kind: TaskKind, places: Sequence[str]) -> Iterator[str]:
    """Yield a Markdown table: the primary score, and the share that is kept of that without a shift."""
    columns = list(next(iter(study.values()))[0])
    yield from head(f"encoder: {kind.primary}", columns)
    for variant, runs in study.items():
        cells = []
        for bands in columns:
            values = np.array([run[bands].test[kind.primary] for run in runs])
            kept = 100 * values / [run["all"].test[kind.primary] for run in runs]
            interval = bootstrap_interval(kind.resampled, [run[bands].statistics for run in runs], places)
            cells.append(f"{cell(values, interval)} ({kept.mean():.0f} %)")
        yield f"| {variant} | {' | '.join(cells)} |"


def _retrieval(study: Study, unit: str, places: Sequence[str]) -> Iterator[str]:
    """Yield a Markdown table: how often the same place is the nearest, and the cosine to it (to other places)."""
    columns = list(next(iter(study.values()))[0])[1:]
    metric, cosine, others = (f"{unit}_{name}" for name in ("top1", "cosine", "elsewhere"))
    chance = next(iter(study.values()))[0][columns[0]].test[f"{unit}_chance"]
    yield from head(f"encoder: same {unit} found (by chance {chance:.3f}), cosine (of others)", columns)
    for variant, runs in study.items():
        cells = []
        for bands in columns:
            tests = [run[bands].test for run in runs]
            of_tiles = [run[bands].same_place[:, SAME_PLACE.index(metric)] for run in runs]
            found = cell(
                np.array([test[metric] for test in tests]), bootstrap_interval(mean_of_tiles, of_tiles, places)
            )
            similar, dissimilar = (np.mean([test[name] for test in tests]) for name in (cosine, others))
            cells.append(f"{found}, {similar:.2f} ({dissimilar:.2f})")
        yield f"| {variant} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
