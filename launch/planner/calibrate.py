"""Calibration: rates that this machine's device achieves by part, from a few measured steps of the run's module.

Two micro batches are timed. Time that grows with the tiles gives each part's rate; the rest is engine overhead.
"""

import time
from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from launch.planner.activations import build_module, image_dtype, inputs
from launch.planner.profile import Profile
from launch.planner.step_time import OPTIMIZER_BYTES, grouped_flops
from pretrain.config import PretrainConfig
from pretrain.engine.optimizers import build_optimizer
from pretrain.engine.zero import ZeroEngine
from pretrain.metrics.phase_timer import PhaseTimer
from pretrain.models.initialize import initialize
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder

BANDS = 202
STEPS = 5
PHASES = ("stem", "encoder", "decoder")


def calibrate(config: PretrainConfig) -> Profile:
    """Time steps with one and two batch-norm groups on one process, without checkpointing."""
    group = config.model.bn_group
    engine = build_engine(with_micro_batch(config, group))
    weights = sum(parameter.numel() for parameter in _whole(config).parameters())
    parts = PhaseTimer(engine.module, None, _device())
    engine.mark = parts.mark
    times = [_seconds(engine, parts, with_micro_batch(config, size)) for size in (group, 2 * group)]
    flops = grouped_flops(config, BANDS)
    slopes = {part: max((times[1][part] - times[0][part]) / group, times[1][part] / 20 / group) for part in PHASES}
    rest = sum(seconds for part, seconds in times[0].items() if part != "optimizer") - group * sum(slopes.values())
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, 1 thread"
    return Profile(
        device=name,
        precision=config.engine.precision,
        model=config.model.name,
        flops={part: flops[part] / slopes[part] for part in PHASES},
        optimizer=OPTIMIZER_BYTES * weights / min(times_of_run["optimizer"] for times_of_run in times),
        fixed=max(0.0, rest),
    )


def with_micro_batch(config: PretrainConfig, micro_batch: int) -> PretrainConfig:
    """Return the config with one micro batch per step, without checkpointing and resampled crops."""
    train = config.train.model_copy(update={"micro_batch": micro_batch, "global_batch": micro_batch})
    engine = config.engine.model_copy(update={"activation_checkpointing": "none"})
    return config.model_copy(update={"train": train, "engine": engine})


def build_engine(config: PretrainConfig) -> ZeroEngine:
    """Return the training engine for a run's module, on one process."""
    import os
    import socket

    from pretrain.engine.zero import init_distributed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in alone.items()})
    init_distributed()
    torch.set_num_threads(config.run.threads)
    module = build_module(config, BANDS)
    initialize(module, "pretrain", config.run.seed)
    optimizer = build_optimizer(module, config.optim)
    return ZeroEngine(module, optimizer, config.engine, config.train.micro_batch, 1, config.optim.clip)


def step_of(engine: ZeroEngine, config: PretrainConfig) -> Callable[[], None]:
    """Return a training step on one micro batch of empty tiles."""
    module = cast(MaskedAutoencoder, engine.module)
    device = _device()
    dtype = image_dtype(config, "cuda" if device.type == "cuda" else "cpu")
    arguments = inputs(config, module, config.train.micro_batch, dtype, BANDS, device.type)

    def step() -> None:
        engine.step(iter([engine(*arguments)[0].mean()]))

    return step


def _seconds(engine: ZeroEngine, parts: PhaseTimer, config: PretrainConfig) -> dict[str, float]:
    """Return the median seconds of each part of a step."""
    step = step_of(engine, config)
    step()
    parts.shares()
    times: list[dict[str, float]] = []
    for _ in range(STEPS):
        began = time.perf_counter()
        with parts.step():
            step()
        if _device().type == "cuda":
            torch.cuda.synchronize()
        total = time.perf_counter() - began
        times.append({part: share * total for part, share in parts.shares().items()})
    return {part: float(np.median([run.get(part, 0.0) for run in times])) for part in times[0]}


def _whole(config: PretrainConfig) -> torch.nn.Module:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # under ZeRO-3 the engine's weights have no elements
        return build_module(config, BANDS)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
