"""The training loop with a linear model in one process; DeepSpeed's engine is tested on process groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from support.plain_engine import PlainEngine
from torch import Tensor, nn

from pretrain.checkpointing.manager import CheckpointManager
from pretrain.config.run import GuardConfig, WatchdogConfig
from pretrain.engine.zero import StepResult
from pretrain.loop.callback import Callback
from pretrain.loop.loop import Loop, Schedule
from pretrain.resilience.guard import Guard
from pretrain.resilience.signals import StopRequest
from pretrain.resilience.watchdog import Watchdog

BATCH = 4


@dataclass(frozen=True)
class Batch:
    samples: np.ndarray
    values: Tensor


class LinearEngine(PlainEngine):
    """Gradient descent that calls ``accept`` before each step, as DeepSpeed's engine does."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1.0)

    def set_lr(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr

    def step(self, losses, accept) -> StepResult:
        self.optimizer.zero_grad()
        done = list(losses)
        torch.stack(done).mean().backward()
        norm = accept(torch.stack(done).mean().detach(), torch.nn.utils.get_total_norm(self._gradients()))
        if norm is not None:
            self.optimizer.step()
        return StepResult(torch.stack(done).detach(), norm is not None)

    def _gradients(self) -> list[Tensor]:
        return [one.grad for one in self.module.parameters() if one.grad is not None]


class Squares:
    """The mean square of the outputs; NaN in ``bad`` steps."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.bad, self.followed, self.dropped = bad, list[int](), 0

    def losses(self, engine, batches, step: int) -> Iterator[Tensor]:
        for _ in range(engine.accumulation):
            loss = engine(next(batches).values).square().mean()
            yield loss * float("nan") if step in self.bad else loss

    def after_step(self, engine, step: int) -> None:
        self.followed.append(step)

    def drop_step(self) -> None:
        self.dropped += 1


def batches(step: int = 0) -> Iterator[Batch]:
    while True:
        samples = np.arange(step * BATCH, (step + 1) * BATCH)
        yield Batch(samples, torch.from_numpy(np.stack([samples, samples % 3, samples % 5], 1)).float() / 10)
        step += 1


def plain_loop(folder: Path, callbacks: Sequence[Callback], steps: int = 6, bad: Sequence[int] = ()) -> Loop:
    """Return a loop over `batches`, with a manager that no callback uses: its engine is not DeepSpeed's."""
    watchdog = Watchdog(WatchdogConfig(), folder, StopRequest())
    schedule = Schedule(steps, BATCH, lambda step: 0.1 / (step + 1))
    guard = Guard(GuardConfig(patience=2))
    engine = LinearEngine()
    checkpoints = CheckpointManager(folder / "checkpoints", engine)  # type: ignore[arg-type]
    return Loop(engine, Squares(bad), schedule, guard, checkpoints, watchdog, callbacks)  # type: ignore[arg-type]
