"""The commands that users run: pretraining that is stopped by a signal and resumed, and the planner's calibration."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from pretrain.resilience.signals import STOPPED
from shards.errors import ForgeError
from tools.gpu_check.row import Row

STEPS = 24
TOLERANCE = 5e-3
"""Largest relative difference of a loss after a resume: bf16 on a GPU doesn't repeat every sum in the same order."""


def checks(device: torch.device, seconds: float) -> Iterator[Row]:
    """Yield a row for each command."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _run("-m", "tools.sample_data", str(work / "tiles"), "--locations", "10", end=end)
        _run("-m", "shards", "pack", str(work / "tiles"), str(work / "shards"), "--tiles-per-shard", "8", end=end)
        yield from _stop_and_resume(work, end)
        yield _calibration(work, end)


def _options(work: Path, name: str) -> list[str]:
    overrides = {
        "run.dir": work / name,
        "data.shards": work / "shards",
        "train.steps": STEPS,
        "engine.precision": "autocast" if torch.cuda.is_available() else "fp32",  # which CPUs are faster at
        "log.every": 1,
        "log.validate_every": STEPS,
        "checkpoint.every": STEPS,
    }
    command = ["launch/pretrain.py", "--config", "configs/pretrain/mae/demo.yaml"]
    return [*command, *(f"{key}={value}" for key, value in overrides.items())]


def _stop_and_resume(work: Path, end: float) -> Iterator[Row]:
    _run(*_options(work, "whole"), end=end)
    process = subprocess.Popen([sys.executable, *_options(work, "stopped")], stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None and time.monotonic() < end and len(_losses(work / "stopped")) < STEPS // 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        code = process.wait(max(1.0, end - time.monotonic()))
    finally:
        process.kill()
    done = len(_losses(work / "stopped"))
    yield Row("launch/pretrain.py after SIGUSR1", f"exit code {code} at step {done}", f"{STOPPED}", code == STOPPED)
    _run(*_options(work, "stopped"), end=end)
    whole, resumed = _losses(work / "whole"), _losses(work / "stopped")
    error = max(abs(resumed[step] / loss - 1) for step, loss in whole.items())
    figure = f"{len(resumed)} steps, losses at most {error:.1e} off"
    yield Row("the same command again resumes", figure, f"{STEPS} steps, <= {TOLERANCE:.0e}", error <= TOLERANCE)


def _losses(folder: Path) -> dict[int, float]:
    """Return the loss of each step that is logged."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def _calibration(work: Path, end: float) -> Row:
    config = "configs/pretrain/mae/spec_vit_s.yaml"
    options = ["--config", config, "--calibrate", str(work / "profile.json"), "data.shards=none", "run.threads=1"]
    small = [] if torch.cuda.is_available() else ["model.name=spec_vit_tiny", "model.image_size=32"]
    _run("-m", "launch.plan", *options, *small, end=end)
    profile = json.loads((work / "profile.json").read_text())
    rates = ", ".join(f"{part} {rate / 1e12:.1f}" for part, rate in profile["flops"].items())
    return Row(
        "launch/plan.py --calibrate", f"{rates} TFLOP/s, {1e3 * profile['fixed']:.1f} ms besides", "written", True
    )


def _run(*arguments: str, end: float) -> None:
    """Run a Python command to its end.

    Raises:
        ForgeError: it failed, with its last line.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=max(1.0, end - time.monotonic()),
        env=os.environ,
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ForgeError(f"{' '.join(arguments[:3])}: exit code {done.returncode}: {lines[-1] if lines else ''}")
