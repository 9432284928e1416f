"""Step time, MFU and memory of the shipped MAE models, beside the planner's predictions."""

import time
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import torch

from launch.planner.activations import Activations, trace_activations
from launch.planner.machines import MACHINES, Machine
from launch.planner.network import Cluster
from launch.planner.search import Plan, Problem
from launch.planner.step_time import default_rates
from pretrain.config import PretrainConfig
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop
from pretrain.metrics.flops import device_peak, sample_flops
from shards.config import load_config
from tools.gpu_check.hardware import synchronize
from tools.gpu_check.memory_run import BANDS, MemoryRun, join_group
from tools.gpu_check.row import Row

SIZES = ("h", "g", "s", "l", "b")  # the most telling first: a slow machine may not reach the last
STAGES = (2, 1, 3)
MICRO_BATCHES = (64, 16)
WARM_UP, TIMED = 3, 5
SECONDS_OF_A_RUN = 25  # to build, compile and time one: the next isn't begun with less left


def checks(device: torch.device, seconds: float) -> Iterator[Row]:
    """Yield a row for each model, stage and micro batch, until the time is up."""
    end = time.monotonic() + seconds
    join_group()
    micro_batches, sizes = (MICRO_BATCHES, SIZES) if device.type == "cuda" else ((8,), ("tiny",))
    left_out = []
    for size in sizes:
        trace = None
        for stage in STAGES:
            for micro_batch in micro_batches:
                if time.monotonic() > end - SECONDS_OF_A_RUN:
                    left_out.append(f"{size} ZeRO {stage} x {micro_batch}")
                    continue
                config = run_config(size, stage, micro_batch)
                trace = trace or trace_activations(config, BANDS, False, "cuda")
                yield _measured(config, trace, device)
    if left_out:
        yield Row("not measured: time is up", ", ".join(left_out))


def run_config(size: str, stage: int, micro_batch: int) -> PretrainConfig:
    """Return a shipped config without recomputation, in bf16 from stage 2 on."""
    overrides = {
        "run.dir": "none",
        "data.shards": "none",
        "train.steps": WARM_UP + TIMED,
        "optim.warmup_steps": 0,
        "train.micro_batch": micro_batch,
        "train.global_batch": micro_batch,
        "engine.zero_stage": stage,
        "engine.precision": "bf16" if stage >= 2 else "autocast",
        "engine.activation_checkpointing": "none",
    }
    path = f"configs/pretrain/mae/spec_vit_{size}.yaml"
    return load_config(path, [f"{key}={value}" for key, value in overrides.items()], PretrainConfig)


class StepTimes(Callback):
    """Times steps after the first few, and notes the peak of the device's memory over them."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, list[float]()

    def before_step(self, loop: Loop) -> None:
        if loop.step == WARM_UP and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        synchronize(self.device)
        self._begin = time.perf_counter()

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        synchronize(self.device)
        if loop.step > WARM_UP:
            self.seconds.append(time.perf_counter() - self._begin)


def _measured(config: PretrainConfig, trace: Activations, device: torch.device) -> Row:
    train, engine = config.train, config.engine
    name = f"{config.model.name}, ZeRO {engine.zero_stage}, {engine.precision}, {train.micro_batch} tiles"
    plan = _plan(config, trace)
    predicted = "" if plan is None else _predicted(plan, config)
    try:
        seconds, peak_bytes = _run(config, device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Row(name, "out of memory", predicted, None if plan is None else bool(plan.reason))
    figure = f"{1e3 * seconds:.1f} ms, {train.micro_batch / seconds:.0f} tiles/s"
    peak = device_peak(engine.precision)
    if peak is not None:
        figure += f", MFU {train.micro_batch * sum(sample_flops(config, BANDS).values()) / seconds / peak:.1%}"
    if device.type == "cuda":
        figure += f", {peak_bytes / 1e9:.1f} GB"
    return Row(name, figure, predicted)


def _run(config: PretrainConfig, device: torch.device) -> tuple[float, int]:
    """Return the median seconds of a step without reading, and the peak bytes of tensors."""
    times, run = StepTimes(device), MemoryRun(config)
    try:
        stream = run.batches(iter([np.arange(config.train.micro_batch)]))
        run.train(repeat(next(stream)), [times])
    finally:
        run.free()
    return float(np.median(times.seconds)), torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def _plan(config: PretrainConfig, trace: Activations) -> Plan | None:
    """Return the planner's prediction for this device, None for one that it doesn't know."""
    machine = _machine()
    if machine is None:
        return None
    cluster = Cluster(machine, 1, 1)
    problem = Problem(config, cluster, default_rates(cluster, config.engine.precision), {False: trace}, BANDS)
    return problem.plan(config.engine.zero_stage, False, config.train.micro_batch)


def _machine() -> Machine | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    kind = next((kind for kind in ("H200", "H100", "A100") if kind in name), None)
    if kind is None:
        return None
    memory = torch.cuda.get_device_properties(0).total_memory
    fitting = [machine for key, machine in MACHINES.items() if key.startswith(kind.lower())]
    return min(fitting, key=lambda machine: abs(machine.memory - memory))


def _predicted(plan: Plan, config: PretrainConfig) -> str:
    machine = _machine()
    assert machine is not None
    mfu = plan.time.mfu(machine.peak(config.engine.precision))
    fits = "" if not plan.reason else ", doesn't fit"
    return f"planned {1e3 * plan.time.seconds:.1f} ms, {mfu:.1%}, {plan.moment.total / 1e9:.1f} GB{fits}"
