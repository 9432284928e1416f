"""Training on the device, compared with the CPU: losses by ZeRO stage and precision, refused steps, host syncs."""

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.data.stream import micro_batches
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop
from shards.config import load_config
from tools.gpu_check.memory_run import MemoryRun, join_group
from tools.gpu_check.row import Row

CONFIG = "configs/pretrain/mae/demo.yaml"
STEPS = 10
RUNS = [(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "autocast", "bf16")]
TOLERANCE = {"fp32": 2e-4, "autocast": 2e-2, "bf16": 3e-2}
"""Largest relative difference of a loss from the CPU's in fp32, over ten steps."""
SYNCS = 1  # reads of the device in a step: loss, gradient norm and stop flag, in one tensor


def checks(device: torch.device, seconds: float) -> Iterator[Row]:
    """Yield a row for each stage and precision, then the refused step, then the syncs of a step."""
    expected = _losses_on_cpu()
    join_group()
    yield Row("process group", f"{torch.distributed.get_backend()}, 1 process")
    for stage, precision in RUNS:
        if precision != "bf16" or stage >= 2:
            yield from _compared(stage, precision, expected)
    for stage in (0, 1, 2, 3):
        yield _refused(stage)


def run_config(stage: int, precision: str, steps: int = STEPS) -> PretrainConfig:
    """Return the demo's config with a resampling augmentation, which differs most between devices."""
    overrides = {
        "run.dir": "none",
        "data.shards": "none",
        "augment.crop_scale": "[0.4, 1.0]",
        "objective.ignore_nodata": "true",
        "train.steps": str(steps),
        "optim.warmup_steps": "0",
        "engine.zero_stage": str(stage),
        "engine.precision": precision,
    }
    return load_config(CONFIG, [f"{key}={value}" for key, value in overrides.items()], PretrainConfig)


class _Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        self.losses.append(outcome.verdict.loss)


def train(stage: int, precision: str, *callbacks: Callback) -> list[float]:
    """Train on made tiles and return the loss of each step."""
    config, seen = run_config(stage, precision), _Losses()
    run = MemoryRun(config, tile_size=48)
    run.train(run.batches(_numbers(config)), [seen, *callbacks])
    run.free()
    return seen.losses


def _numbers(config: PretrainConfig) -> Iterator[np.ndarray]:
    return micro_batches(0, config.train.steps, config.train.global_batch, config.train.micro_batch, 0, 1)


def _losses_on_cpu() -> list[float]:
    """Return the losses of a process that sees no GPU."""
    command = [sys.executable, "-m", "tools.gpu_check.training"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _compared(stage: int, precision: str, expected: list[float]) -> Iterator[Row]:
    syncs = [_Syncs()] if torch.cuda.is_available() else []
    losses, limit = train(stage, precision, *syncs), TOLERANCE[precision]
    error = float(np.max(np.abs(np.array(losses) / np.array(expected) - 1)))
    run = f"{STEPS} steps of tiny, ZeRO {stage}, {precision}"
    figure = f"loss {losses[-1]:.4f}, at most {error:.1e} off"
    yield Row(run, figure, f"{expected[-1]:.4f}, <= {limit:.0e}", error <= limit)
    for counted in syncs:
        ok = counted.places.total() <= SYNCS if stage in (1, 2) else None  # stage 3 has DeepSpeed's own as well
        yield Row("  host syncs of its last step", str(counted), str(SYNCS) if ok is not None else "", ok)


class _Poisoned:
    """An objective whose loss is NaN at one step."""

    def __init__(self, objective: Any, step: int) -> None:
        self.objective, self.step = objective, step

    def losses(self, engine: ZeroEngine, batches: Iterator[Any], step: int) -> Iterator[Tensor]:
        """Yield the losses of the micro batches."""
        for loss in self.objective.losses(engine, batches, step):
            yield loss * (torch.nan if step == self.step else 1.0)

    def after_step(self, engine: ZeroEngine, step: int) -> None:
        """Follow the objective."""
        self.objective.after_step(engine, step)

    def drop_step(self) -> None:
        """Follow the objective."""
        self.objective.drop_step()


class _Weights(Callback):
    """Notes whether each step has moved the weights."""

    def __init__(self) -> None:
        self.moved: list[bool] = []

    def before_step(self, loop: Loop) -> None:
        self._before = [values.clone() for values in loop.engine.adapter.flat_partitions()]

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        pairs = zip(self._before, loop.engine.adapter.flat_partitions(), strict=True)
        self.moved.append(any(not torch.equal(before, after) for before, after in pairs))


def _refused(stage: int) -> Row:
    config, weights, seen = run_config(stage, "autocast", 3), _Weights(), _Losses()
    run = MemoryRun(config, tile_size=48)
    run.train(run.batches(_numbers(config)), [weights, seen], _Poisoned(run.objective, 1))
    run.free()
    ok = weights.moved == [True, False, True] and not np.isfinite(seen.losses[1])
    return Row(f"a step with NaN, ZeRO {stage}", f"weights moved: {weights.moved}", "[True, False, True]", ok)


class _Syncs(Callback):
    """Counts what torch reports as synchronizing in the last step."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()

    def before_step(self, loop: Loop) -> None:
        if loop.step == loop.schedule.steps - 1:
            self._caught = warnings.catch_warnings(record=True)
            self._warnings = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.set_warn_always(True)
            torch.cuda.set_sync_debug_mode("warn")

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        if loop.is_last:
            torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            reported = [warning for warning in self._warnings if "synchronizing" in str(warning.message)]
            self.places.update(f"{warning.filename.rsplit('/', 1)[-1]}:{warning.lineno}" for warning in reported)

    def __str__(self) -> str:
        where = ", ".join(f"{place} x {number}" for place, number in self.places.most_common())
        return f"{self.places.total()}: {where}"


if __name__ == "__main__":
    join_group()
    print(json.dumps(train(1, "fp32")))
