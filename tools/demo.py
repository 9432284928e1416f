"""The whole path on a laptop, by the commands a user would type: `make demo`.

Tiles -> shards and statistics -> MAE under ZeRO-3 on two processes, stopped half-way and resumed ->
encoder file -> frozen and full fine-tuning against the untrained encoder -> a table.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from pretrain.resilience.signals import STOPPED
from shards.cli import Parser, run_command
from shards.config import REPOSITORY
from shards.errors import ForgeError, SourceError
from shards.sources.layouts import find_tiles, tile_root
from tools.sample_data import SampleOptions, holds_sample

BEGIN = time.monotonic()
SHORT = {
    "pretrain": ["train.steps=12", "log.every=2", "optim.warmup_steps=2", "log.validate_every=6"],
    "finetune": ["frozen.epochs=2", "frozen.evaluate_every=1", "protocol=[knn,frozen,full]", "fractions=[0.2]"],
}


class DemoError(ForgeError):
    """A stage that did not end as it should."""

    exit_code = 1


def main(argv: list[str] | None = None) -> int:
    """Run all stages; returns the exit code."""
    parser = Parser(prog="make demo", description=__doc__)
    parser.add_argument("--tiles", type=Path, help="your own tiles instead of the synthetic sample")
    parser.add_argument("--labels", type=Path, help="label tiles of the same names as --tiles")
    parser.add_argument("--task", help="classes of the labels: a task's name or YAML file (default: codes as found)")
    parser.add_argument("--shards-only", action="store_true", help="stop when the shards are made")
    parser.add_argument("--short", action="store_true", help="a few steps only: shows that the path works")
    parser.set_defaults(run=_run_stages)
    return run_command(parser, argv)


def _run_stages(arguments: argparse.Namespace) -> None:
    tiles, labels = (folder and folder.resolve() for folder in (arguments.tiles, arguments.labels))
    name = prepare_shards(tiles, labels, arguments.short)
    if not arguments.shards_only:
        run_demo(tiles, labels, arguments.task, arguments.short, name)
    print(f"demo: done in {time.monotonic() - BEGIN:.0f} s")


def prepare_shards(tiles: Path | None, labels: Path | None, short: bool) -> str:
    """The first two stages; returns the demo's name."""
    name = _name(tiles, short)
    _check_tiles(tiles, labels)
    labeled = _labels_of(tiles, labels)
    sample = _sample(short)
    if tiles is None or labeled is None:
        _stage("1/6", "making synthetic EnMAP-like tiles with labels")
        _make_sample(sample, locations=10 if short else 24)
    if tiles is not None:
        _stage("1/6", f"taking the tiles of {tiles}")
        if labeled is None:
            print(f"{tiles} has no labels: pretraining uses it, the labeled task is the synthetic sample's")
    _stage("2/6", "tiles to WebDataset shards, with per-band statistics")
    _pack(tiles or sample, _shards(name), labeled if tiles else sample / "labels")
    return name


def run_demo(tiles: Path | None, labels: Path | None, task: str | None, short: bool, name: str) -> None:
    """The other stages, in order."""
    labeled, sample = _labels_of(tiles, labels), _sample(short)
    run, evaluation = _run(name), _run(f"{name}-finetune")
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(evaluation, ignore_errors=True)
    options = [f"run.dir={run}", f"data.shards={_shards(name)}", *(SHORT["pretrain"] if short else [])]
    _stage("3/6", f"pretraining with DeepSpeed ZeRO-3 on {_processes()} processes, to be stopped half-way")
    _pretrain_and_stop(run, options)
    _stage("4/6", "the same command again: it resumes")
    _expect(0, _start_pretraining(options).wait())
    _stage("5/6", "evaluating the encoder, frozen and fully tuned, against an untrained one")
    chosen = _evaluation_options(tiles or sample, labeled or sample / "labels", task, labeled is None)
    _python(
        *("launch/finetune.py", "--config", "configs/finetune/demo.yaml"),
        *(f"run.dir={evaluation}", f"checkpoint={run / 'encoder.safetensors'}", *chosen),
        *(SHORT["finetune"] if short else []),
    )
    _stage("6/6", "results")
    _python("-m", "finetune", "report", str(evaluation))
    _summary(tiles, run, evaluation, short)


def _name(tiles: Path | None, short: bool) -> str:
    return ("demo" if tiles is None else f"demo-{tiles.name}") + ("-short" if short else "")


def _sample(short: bool) -> Path:
    return REPOSITORY / "demo" / ("sample-short" if short else "sample")


def _shards(name: str) -> Path:
    return REPOSITORY / "demo" / f"shards-{name}"


def _make_sample(sample: Path, locations: int) -> None:
    if sample.exists() and not holds_sample(sample, SampleOptions(locations)):
        print(f"demo: {sample} is of another version: making it anew")
        shutil.rmtree(sample)
    _python("-m", "tools.sample_data", str(sample), "--locations", str(locations))


def _pack(tiles: Path, shards: Path, labels: Path | None) -> None:
    command = ["-m", "shards", "pack", str(tiles), str(shards), "--tiles-per-shard", "8", "--max-bad", "0.1"]
    if labels is not None:
        splits = tiles / "splits"
        command += ["--labels", str(labels), *(["--splits", str(splits)] if splits.is_dir() else [])]
    if shards.exists() and _run_python(*command) == 2:
        print(f"demo: {shards} is of other tiles or options: packing anew")
        shutil.rmtree(shards)
    if not (shards / "manifest.json").exists():
        _python(*command)


def _summary(tiles: Path | None, run: Path, evaluation: Path, short: bool) -> None:
    task = json.loads((evaluation / "results.json").read_bytes())["task"]
    if short:
        print("A short demo: a few steps show that the path works, the scores mean nothing.")
    if tiles is None:
        print("The tiles are synthetic; the numbers above are what came out on this machine.")
    elif task.get("synthetic"):
        print(f"Pretrained on {tiles}; the labeled tiles are synthetic.")
    print(f"reconstruction picture: {run / 'reconstruction.png'}")
    print(f"scores and class maps:  {evaluation / 'report.html'}")
    print(f"TensorBoard:            .venv/bin/tensorboard --logdir {run / 'tensorboard'}")
    print(f"encoder:                {run / 'encoder.safetensors'}")
    print(f"map of a scene:         python -m finetune predict {evaluation / 'model.safetensors'} SCENE OUT.tif")


def _pretrain_and_stop(run: Path, options: list[str]) -> None:
    """Start, wait for half of the steps, send SIGTERM to one rank as a cluster would, expect a saved stop."""
    process = _start_pretraining(options)
    steps = None
    while process.poll() is None:
        time.sleep(0.2)
        if steps is None and (run / "config.yaml").exists():
            steps = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["train"]["steps"]
        if steps and _last_step(run) >= steps // 2:
            print(f"demo: sending SIGTERM to rank 0 after step {_last_step(run)}", flush=True)
            os.kill(int((run / "rank0.pid").read_text()), signal.SIGTERM)
            break
    _expect(STOPPED, process.wait())
    print(f"demo: exit code {STOPPED}: stopped and saved, as asked (the launcher calls every code but 0 an error)")


def _start_pretraining(options: list[str]) -> subprocess.Popen:
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(_processes())]
    command = [*launcher, "launch/pretrain.py", "--config", "configs/pretrain/mae/demo.yaml", *options]
    print("$ deepspeed " + " ".join(command[1:]), flush=True)
    environment = os.environ | ({} if _gpus() else {"DS_ACCELERATOR": "cpu"})
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment)


def _processes() -> int:
    """Two, but no more than there are GPUs where there are any: two processes can't share one under NCCL."""
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
        find_tiles(tiles, "enmap")  # a folder without tiles is said before anything is made


def _labels_of(tiles: Path | None, labels: Path | None) -> Path | None:
    if labels is None and tiles is not None and (tiles / "labels").is_dir():
        return tiles / "labels"
    return labels


def _evaluation_options(tiles: Path, labels: Path, task: str | None, is_sample: bool) -> list[str]:
    """The labeled data: the user's, or the sample's where the user's tiles have no labels."""
    tiles = labels.parent if is_sample else tiles
    splits = tiles / "splits"
    return [
        f"task={'sample_materials' if is_sample else task or _task_from_codes(labels)}",
        f"data.images={tile_root(tiles, 'enmap')}",
        f"data.labels={labels}",
        f"data.splits={splits if splits.is_dir() else 'null'}",
    ]


def _task_from_codes(labels: Path) -> str:
    """A task file with a class per code that occurs; 0 and 255 are taken as "unlabeled"."""
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


def _run(name: str) -> Path:
    return REPOSITORY / "runs" / name


def _last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def _python(*command: str) -> None:
    _expect(0, _run_python(*command))


def _run_python(*command: str) -> int:
    print("$ python " + " ".join(command), flush=True)
    return subprocess.run([sys.executable, *command], cwd=REPOSITORY).returncode


def _expect(code: int, got: int) -> None:
    if got != code:
        raise DemoError(f"the command above ended with exit code {got}, expected {code}")


def _stage(number: str, text: str) -> None:
    print(f"\n=== {number} {text} (after {time.monotonic() - BEGIN:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
