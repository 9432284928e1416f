"""The complete workflow on a laptop, with the commands that a user types: `make demo`.

Tiles -> shards and statistics -> MAE under ZeRO-3 on two processes, stopped halfway and resumed ->
encoder file -> frozen and full fine-tuning compared with a randomly initialized encoder -> a table.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import yaml

from pretrain.resilience.signals import STOPPED
from shards.cli import Parser, run_command
from shards.config import REPOSITORY
from shards.errors import ForgeError, SourceError
from shards.sources.layouts import find_tiles, tile_root
from tools.demo_screen import Screen, Shown
from tools.sample_data import holds_sample
from tools.sample_tiles import SampleOptions

BEGIN = time.monotonic()
SHORT = {
    "pretrain": ["train.steps=12", "log.every=2", "optim.warmup_steps=2", "log.validate_every=6"],
    "finetune": ["frozen.epochs=2", "frozen.evaluate_every=1", "protocol=[knn,frozen,full]", "fractions=[0.2]"],
}


class DemoError(ForgeError):
    """A command did not end as expected."""

    exit_code = 1


MAP = "prisma.tif"
"""Map of another sensor's scene, in the folder of the evaluation."""

SCREEN = Screen(REPOSITORY / "runs" / "demo.log")


def main(argv: list[str] | None = None) -> int:
    """Run all stages and return the exit code."""
    parser = Parser(prog="make demo", description=__doc__)
    parser.add_argument("--tiles", type=Path, help="your own tiles instead of the synthetic sample")
    parser.add_argument("--labels", type=Path, help="label tiles of the same names as --tiles")
    parser.add_argument("--task", help="classes of the labels: a task's name or YAML file (default: codes as found)")
    parser.add_argument("--shards-only", action="store_true", help="stop when the shards are made")
    parser.add_argument("--short", action="store_true", help="a few steps only, to show that the pipeline works")
    parser.set_defaults(run=_run_stages)
    return run_command(parser, argv)


def _run_stages(arguments: argparse.Namespace) -> None:
    tiles, labels = (folder and folder.resolve() for folder in (arguments.tiles, arguments.labels))
    name = prepare_shards(tiles, labels, arguments.short)
    if not arguments.shards_only:
        run_demo(tiles, labels, arguments.task, arguments.short, name)
    SCREEN.show(f"\ndone in {time.monotonic() - BEGIN:.0f} s")


def prepare_shards(tiles: Path | None, labels: Path | None, short: bool) -> str:
    """Run the first two stages and return the demo's name."""
    name = _name(tiles, short)
    _check_tiles(tiles, labels)
    labeled = _labels_of(tiles, labels)
    sample = _sample(short)
    if tiles is None or labeled is None:
        _stage("1/6", "creating synthetic EnMAP-like tiles with labels")
        _make_sample(sample, locations=10 if short else 24)
    if tiles is not None:
        _stage("1/6", f"using the tiles in {tiles}")
        if labeled is None:
            SCREEN.show(f"{tiles} has no labels: pretraining uses it, the labeled task is the synthetic sample's")
    _stage("2/6", "tiles to WebDataset shards, with per-band statistics")
    _pack(tiles or sample, _shards(name), labeled if tiles else sample / "labels")
    return name


def run_demo(tiles: Path | None, labels: Path | None, task: str | None, short: bool, name: str) -> None:
    """Run the remaining stages."""
    labeled, sample = _labels_of(tiles, labels), _sample(short)
    run, evaluation = _run(name), _run(f"{name}-finetune")
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(evaluation, ignore_errors=True)
    options = [f"run.dir={_shown(run)}", f"data.shards={_shown(_shards(name))}", *(SHORT["pretrain"] if short else [])]
    _stage("3/6", f"pretraining with DeepSpeed ZeRO-3 on {_processes()} processes, to be stopped half-way")
    _pretrain_and_stop(run, options)
    _stage("4/6", "run the same command again: it resumes")
    _expect(0, _start_pretraining(options).wait())
    _stage("5/6", "evaluating the encoder, frozen and fully tuned, against a randomly initialized one")
    chosen = _evaluation_options(tiles or sample, labeled or sample / "labels", task, labeled is None)
    _python(
        *("launch/finetune.py", "--config", "configs/finetune/demo.yaml"),
        *(f"run.dir={_shown(evaluation)}", f"checkpoint={_shown(run / 'encoder.safetensors')}", *chosen),
        *(SHORT["finetune"] if short else []),
    )
    _stage("6/6", "results")
    _python("-m", "finetune", "report", _shown(evaluation))
    _map_another_sensor(run, evaluation)
    _summary(tiles, run, evaluation, short)


def _map_another_sensor(run: Path, evaluation: Path) -> None:
    """Map a scene in the files of another sensor's product, resampled to the bands of the model.

    An evaluation on a fraction of the tiles, as in a short demo, keeps no model: the map is that of the features.
    """
    scene = REPOSITORY / "demo" / "prisma"
    if not scene.exists():
        _python("-m", "tools.sample_scene", _shown(scene), "--product", "prisma", "--size", "96")
    (product,) = scene.glob("*.he5")
    model, output = evaluation / "model.safetensors", evaluation / MAP
    if not model.exists():
        model = run / "encoder.safetensors"
    _python("-m", "finetune", "predict", _shown(model), _shown(product), _shown(output), "--bands", "resample")


def _name(tiles: Path | None, short: bool) -> str:
    return ("demo" if tiles is None else f"demo-{tiles.name}") + ("-short" if short else "")


def _sample(short: bool) -> Path:
    return REPOSITORY / "demo" / ("sample-short" if short else "sample")


def _shards(name: str) -> Path:
    return REPOSITORY / "demo" / f"shards-{name}"


def _make_sample(sample: Path, locations: int) -> None:
    if sample.exists() and not holds_sample(sample, SampleOptions(locations)):
        SCREEN.show(f"{_shown(sample)} has another version: creating it again")
        shutil.rmtree(sample)
    _python("-m", "tools.sample_data", _shown(sample), "--locations", str(locations))


def _pack(tiles: Path, shards: Path, labels: Path | None) -> None:
    command = ["-m", "shards", "pack", _shown(tiles), _shown(shards), "--tiles-per-shard", "8", "--max-bad", "0.1"]
    if labels is not None:
        splits = tiles / "splits"
        command += ["--labels", _shown(labels), *(["--splits", _shown(splits)] if splits.is_dir() else [])]
    if shards.exists() and _run_python(*command) == 2:
        SCREEN.show(f"{_shown(shards)} has other tiles or options: packing again")
        shutil.rmtree(shards)
    if not (shards / "manifest.json").exists():
        _python(*command)


def _summary(tiles: Path | None, run: Path, evaluation: Path, short: bool) -> None:
    task = json.loads((evaluation / "results.json").read_bytes())["task"]
    if short:
        SCREEN.show("A short demo: a few steps only show that the pipeline works. The scores mean nothing.")
    if tiles is None:
        SCREEN.show("The tiles are synthetic: the scores show that the pipeline works, not how good the model is.")
    elif task.get("synthetic"):
        SCREEN.show(f"Pretrained on {tiles}; the labeled tiles are synthetic.")
    SCREEN.show("\nOpen")
    for path, what in (
        (evaluation / "report.html", "scores, curves and class maps, in a browser"),
        (run / "reconstruction.png", "a held-out tile: masked, predicted, true, and spectra"),
        (run, "the pretraining run: encoder.safetensors, metrics.jsonl, checkpoints"),
        (evaluation, "the evaluation: results.json and model.safetensors, for `python -m finetune predict`"),
        (evaluation / MAP, "the map of a PRISMA scene, by what was trained on EnMAP"),
        (SCREEN.log, "the full output of the commands, with DeepSpeed's lines"),
    ):
        SCREEN.show(f"  {_shown(path):<38} {what}")
    SCREEN.show("or run .venv/bin/tensorboard --logdir runs")


def _pretrain_and_stop(run: Path, options: list[str]) -> None:
    """Start a run, send SIGTERM to one rank after half of the steps as a cluster does, and require a saved stop."""
    process = _start_pretraining(options)
    steps = None
    while process.is_running():
        time.sleep(0.2)
        if steps is None and (run / "config.yaml").exists():
            steps = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["train"]["steps"]
        if steps and _last_step(run) >= steps // 2:
            SCREEN.show(f"-> SIGTERM to rank 0 after step {_last_step(run)}, as a scheduler sends it")
            os.kill(int((run / "rank0.pid").read_text()), signal.SIGTERM)
            break
    _expect(STOPPED, process.wait())
    SCREEN.show(f"-> exit code {STOPPED}: stopped and saved")


def _start_pretraining(options: list[str]) -> Shown:
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(_processes())]
    command = [*launcher, "launch/pretrain.py", "--config", "configs/pretrain/mae/demo.yaml", *options]
    SCREEN.show("$ deepspeed " + " ".join(command[1:]))
    return SCREEN.start(command, REPOSITORY, {} if _gpus() else {"DS_ACCELERATOR": "cpu"})


def _processes() -> int:
    """Return two, or one on a machine with one GPU: two processes can't share a GPU under NCCL."""
    return min(2, _gpus()) or 2


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _check_tiles(tiles: Path | None, labels: Path | None) -> None:
    if labels is not None and tiles is None:
        raise SourceError("LABELS needs TILES: label tiles have the names of the image tiles")
    for folder in (tiles, labels):
        if folder is not None and not folder.is_dir():
            raise SourceError(f"{folder}: no such directory")
    if tiles is not None:
        find_tiles(tiles, "enmap")  # raises if the folder has no tiles, before anything is written


def _labels_of(tiles: Path | None, labels: Path | None) -> Path | None:
    if labels is None and tiles is not None and (tiles / "labels").is_dir():
        return tiles / "labels"
    return labels


def _evaluation_options(tiles: Path, labels: Path, task: str | None, is_sample: bool) -> list[str]:
    """Return the options of the labeled data: the user's, or the sample's if the user's tiles have no labels."""
    tiles = labels.parent if is_sample else tiles
    splits = tiles / "splits"
    return [
        f"task={'sample_materials' if is_sample else task or _task_from_codes(labels)}",
        f"data.images={_shown(tile_root(tiles, 'enmap'))}",
        f"data.labels={_shown(labels)}",
        f"data.splits={_shown(splits) if splits.is_dir() else 'null'}",
    ]


def _task_from_codes(labels: Path) -> str:
    """Write a task file with a class for each code that occurs; 0 and 255 count as "unlabeled"."""
    import numpy as np

    from shards.sensors.sensor import NODATA
    from shards.sources.labels import read_label

    paths = sorted(path for path in labels.rglob("*") if path.suffix.lower() in (".tif", ".tiff"))
    codes = sorted({int(code) for path in paths for code in np.unique(read_label(path))} - {0, 255, NODATA})
    if len(codes) < 2:
        raise SourceError(f"{labels}: fewer than two classes in {len(paths)} label tiles")
    classes = [{"code": code, "name": f"class {code}", "color": "#808080"} for code in codes]
    document = {"name": labels.parent.name, "description": f"Codes found in {labels.name}/", "classes": classes}
    path = REPOSITORY / "demo" / f"task-{labels.parent.name}.yaml"
    path.write_text(yaml.safe_dump(document | {"ignore": [0, 255]}, sort_keys=False), encoding="utf-8")
    return str(path)


def _shown(path: Path) -> str:
    """Return a path as used by commands, which run in the repository's folder."""
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


def _run(name: str) -> Path:
    return REPOSITORY / "runs" / name


def _last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def _python(*command: str) -> None:
    _expect(0, _run_python(*command))


def _run_python(*command: str) -> int:
    SCREEN.show("$ python " + " ".join(command))
    return SCREEN.start([sys.executable, *command], REPOSITORY, {}).wait()


def _expect(code: int, got: int) -> None:
    if got != code:
        raise DemoError(f"the command above ended with exit code {got}, expected {code}: see {_shown(SCREEN.log)}")


def _stage(number: str, text: str) -> None:
    SCREEN.show(f"\n=== {number} {text} (after {time.monotonic() - BEGIN:.0f} s)")


if __name__ == "__main__":
    sys.exit(main())
