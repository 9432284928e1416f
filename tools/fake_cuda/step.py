"""Runs training steps as the trainer does, on tensors without storage, and counts the last one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from launch.planner.machines import Machine
from launch.planner.step_trace import Parts
from pretrain import distributed
from pretrain.checkpointing.manager import CheckpointManager
from pretrain.config import PretrainConfig
from pretrain.engine.optimizers import build_optimizer
from pretrain.engine.schedules import learning_rate
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop, Schedule
from pretrain.models.normalize import Normalizer
from pretrain.objectives import build_objective
from pretrain.objectives.objective import Objective
from pretrain.resilience.guard import Guard
from pretrain.resilience.signals import StopRequest
from pretrain.resilience.watchdog import Watchdog
from tools.fake_cuda import compiler
from tools.fake_cuda.counter import StepCount, StepCounter
from tools.fake_cuda.inputs import FakeStream, manifest
from tools.fake_cuda.mode import FakeCudaMode
from tools.fake_cuda.recorder import recording

STEPS = 3
"""Steps that are run: ZeRO-3 records the order of modules in the first, and prefetches by it from the second on."""


class CountLastStep(Callback):
    """Counts the last step of a loop."""

    def __init__(self, parts: Parts, machine: Machine) -> None:
        self.counter = StepCounter(parts, machine)
        self._recording = recording(self.counter.count.recorder)

    def before_step(self, loop: Loop) -> None:
        self.counter.parts.start()
        if loop.step == loop.schedule.steps - 1:
            self._recording.__enter__()
            self.counter.__enter__()

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        assert outcome.applied, outcome.verdict
        if loop.is_last:
            self.counter.__exit__(None, None, None)
            self._recording.__exit__(None, None, None)


def count_step(config: PretrainConfig, world: int, machine: Machine) -> StepCount:
    """Return the counts of rank 0's step after a few others."""
    _join_group(world)
    if config.engine.compile:
        compiler.install()
        torch._dynamo.reset()  # graphs of other cases count toward the limit of a function's graphs
    with _own_linear(), FakeCudaMode(allow_non_fake_inputs=True) as mode:
        torch.autograd.set_multithreading_enabled(False)  # a thread of its own would not be in the mode
        normalize = Normalizer(manifest().mean, manifest().std, config.augment.clip).to(distributed.device())
        objective = build_objective(config, normalize, [manifest()])
        engine = _engine(objective, config)
        momentum = None if objective.momentum is None else objective.momentum.module
        parts = Parts(engine.module, momentum)
        engine.mark = parts.mark
        count = CountLastStep(parts, machine)
        batches = FakeStream(config, objective, mode).steps(config, STEPS)
        _loop(engine, objective, config, count).run(batches)
        batches.close()
        return count.counter.count


@contextmanager
def _own_linear() -> Iterator[None]:
    """Restore torch's ``linear``, which DeepSpeed replaces at stage 3 for the rest of the process: counts of later
    cases would depend on those before them."""
    linear = torch.nn.functional.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


def _engine(objective: Objective, config: PretrainConfig) -> ZeroEngine:
    train, module = config.train, objective.module
    optimizer = build_optimizer(module, config.optim)
    accumulation = config.accumulation(distributed.world_size())
    return ZeroEngine(module, optimizer, config.engine, train.micro_batch, accumulation, config.optim.clip)


def _loop(engine: ZeroEngine, objective: Objective, config: PretrainConfig, callback: Callback) -> Loop:
    schedule = Schedule(
        STEPS, config.train.global_batch, lambda step: learning_rate(step, config.train.steps, config.lr, config.optim)
    )
    folder = Path(tempfile.gettempdir())  # nothing is written
    checkpoints = CheckpointManager(folder, engine)
    watchdog = Watchdog(config.watchdog, folder, StopRequest())
    return Loop(engine, objective, schedule, Guard(config.guard), checkpoints, watchdog, [callback])


def _join_group(world: int) -> None:
    """Make this process rank 0 of a group whose collectives do nothing; it stays so, as DeepSpeed's groups do.

    Raises:
        ValueError: the process is in a group of another size.
    """
    if dist.is_initialized():
        if dist.get_world_size() != world:
            raise ValueError(f"this process counts steps of {dist.get_world_size()} processes, not of {world}")
        return
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    os.environ.update(DS_ACCELERATOR="cuda", DS_SKIP_CUDA_CHECK="1", DS_LOG_LEVEL="error")
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    _skip_comparisons()


def _skip_comparisons() -> None:
    """Leave out DeepSpeed's comparison of the ranks' recorded orders, in the first steps: it needs values."""
    import deepspeed.runtime.zero.partitioned_param_coordinator as coordinator

    coordinator.assert_ints_same_as_other_ranks = lambda _: None
