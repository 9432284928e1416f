"""Spectral shift of encoders that are pretrained alike: features of one sensor, asked for through the bands of others.

Pretrains a tiny Spec. ViT by MAE on the training and validation tiles of a labeled task, with each stem and several
seeds, and compares nearest neighbors across bands (protocol ``shift``) with those of raw spectra. Finished runs are
kept, so the same command continues an interrupted study.

    python -m tools.study_shift --images TILES --labels LABELS --splits SPLITS --task TASK OUT
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from finetune.evaluation.neighbors import tested_bands
from finetune.evaluation.results import read_results
from finetune.tasks.kinds.kind import kind_of
from shards.cli import Parser, positive, run_command
from shards.config import REPOSITORY
from shards.errors import ForgeError
from shards.files.atomic import write_atomic
from shards.read.reader import open_dataset

VARIANTS: dict[str, tuple[str, ...]] = {
    "conv": (),
    "wave": ("model.stem=wave", "model.bn_group=4"),
    "wave, augmented": (
        "model.stem=wave",
        "model.bn_group=4",
        "augment.sensors={own: 1, subset: 1, range: 1, responses: 1}",
    ),
}
"""Settings of each encoder in addition to `PRETRAIN`."""

PRETRAIN = (
    "run.threads=1",
    "data.holdout=0",
    "objective.mask_ratio=0.75",
    "objective.decoder.width=256",
    "objective.decoder.heads=8",
    "optim.warmup_steps=50",
    "train.global_batch=16",
    "engine.zero_stage=1",
    "log.every=50",
    "log.validate_every=0",
    "checkpoint.every=1000",
)
SHIFT = "[even,random_40,vnir,swir,prisma,sentinel2]"


class StudyError(ForgeError):
    """A command of the study did not end as expected."""

    exit_code = 1


def main(argv: list[str] | None = None) -> int:
    """Run the study and print its table."""
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
    scores: dict[str, list[dict[str, float]]] = {variant: [] for variant in (*arguments.variants, "raw spectra")}
    for (variant, _), folder in zip(runs, folders, strict=True):
        scores[variant].append(_scores(folder, "pretrained"))
    scores["raw spectra"].append(_scores(folders[0], "raw"))
    text = "\n".join(_table(scores))
    write_atomic(arguments.out / "table.md", text + "\n")
    print(text)


def _pack(arguments: argparse.Namespace) -> Path:
    """Pack the tiles, and list the keys of those that are pretrained on: all but the test tiles."""
    shards = arguments.out / "shards"
    if not (shards / "manifest.json").exists():
        options = ["--labels", arguments.labels, "--splits", arguments.splits]
        _run("pack", "-m", "shards", "pack", arguments.images, shards, *options)
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
        _run(folder.name, "launch/pretrain.py", "--config", "configs/pretrain/mae/demo.yaml", *options)
        tiles = [f"data.{name}={getattr(arguments, name)}" for name in ("images", "labels", "splits")]
        run = [f"run.dir={folder / 'shift'}", f"checkpoint={folder / 'pretrain/encoder.safetensors'}"]
        options = ["protocol=[shift]", f"shift.test={SHIFT}", "compare_raw=true", "knn.neighbors=10", "frozen.views=1"]
        command = ["launch/finetune.py", "--config", "configs/finetune/demo.yaml", f"task={arguments.task}"]
        _run(folder.name, *command, *tiles, *run, *options, "run.threads=1")
    return folder / "shift"


def _run(name: str, *command: object) -> None:
    print(f"{name}: {command[0]} {command[1]}", file=sys.stderr, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise StudyError(f"{name}: exit code {done.returncode}: {' '.join(last)}")


def _scores(folder: Path, encoder: str) -> dict[str, float]:
    """Return the primary score of each band set."""
    run = read_results(folder)
    results, score = [result for result in run.results if result.encoder == encoder], kind_of(run.task).primary
    return {str(tested_bands(result.protocol)): result.test[score] for result in results}


def _table(scores: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Yield a Markdown table: mean score ± deviation over seeds, and the share kept of that without a shift."""
    columns = list(next(iter(scores.values()))[0])
    yield f"| encoder | {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for variant, runs in scores.items():
        cells = []
        for bands in columns:
            values = np.array([run[bands] for run in runs])
            kept = 100 * values / [run["all"] for run in runs]
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread} ({kept.mean():.0f} %)")
        yield f"| {variant} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
