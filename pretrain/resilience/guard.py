"""Decides which steps are applied: one with a non-finite or unusually large loss or gradient norm is skipped.

One all-reduce per step carries the loss, whether any rank was asked to stop, and whether a checkpoint is written; the
gradient norm is global already. So every rank has the same numbers and makes the same decision. It is made between
DeepSpeed's gradient norm and its update (pretrain/engine/deepspeed_adapter.py), from one read of the device, the only
one of a step.

A skipped step still counts: its samples are seen, and learning rate and order continue as planned. Weights, moments,
batch norms, momentum networks and queues stay as they were.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.config.run import GuardConfig
from shards.errors import ForgeError

WRITER = 1 << 24
"""What a written part of a checkpoint counts in the sum of flags; a request to stop counts 1."""


class Diverged(ForgeError):
    """Training has diverged: steps are skipped again and again, or its state is non-finite."""

    exit_code = 76
    everywhere = True


@dataclass(frozen=True)
class Verdict:
    """The decision on one step, the same on all ranks.

    Attributes:
        loss: mean over the global batch.
        grad_norm: before clipping; NaN if the gradient is non-finite.
        reason: why the step is skipped; None if it is applied.
        stop: whether any rank was asked to stop.
        saved: whether all ranks have written their parts of a save in flight, or failed to.
    """

    loss: float
    grad_norm: float
    reason: str | None
    stop: bool
    saved: bool = False

    @property
    def accepted_norm(self) -> float | None:
        """The gradient norm if the step is applied, None if it is skipped."""
        return self.grad_norm if self.reason is None else None


class Guard:
    """Judges the steps of a run.

    Args:
        config: window, sigma and patience.

    Attributes:
        skipped: steps skipped since the start of the run.
        in_a_row: steps skipped since the last applied one.
        not_finite: how many of these, counted from the last one back, had a non-finite loss or gradient.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped = self.in_a_row = self.not_finite = 0
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)

    def judge(self, loss: Tensor, grad_norm: Tensor, stop: bool, written: bool = False) -> Verdict:
        """Return the decision on a step; every rank calls it.

        Args:
            loss: this rank's mean, on the device.
            grad_norm: global, on the device; non-finite if the gradient is.
            stop: whether this rank was asked to stop.
            written: whether this rank's part of a save in flight is written.
        """
        flags = torch.full_like(loss, stop + WRITER * written, dtype=torch.float64)  # both counts in one number
        local = torch.stack([loss.double(), flags])
        with distributed.reading():
            numbers = torch.cat([distributed.all_reduce_sum(local), grad_norm.double().view(1)])
            total, counts, norm = numbers.tolist()
        writers, stops = divmod(int(counts), WRITER)
        mean = total / distributed.world_size()
        norm = norm if math.isfinite(norm) else math.nan
        reason = self._unusual("loss", mean, self._losses) or self._unusual("gradient norm", norm, self._norms)
        if reason is None:
            self._losses.append(mean)
            self._norms.append(norm)
            self.in_a_row = self.not_finite = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
            self.not_finite = 0 if math.isfinite(mean) and math.isfinite(norm) else self.not_finite + 1
        return Verdict(mean, norm, reason, stops > 0, writers == distributed.world_size())

    @property
    def is_out_of_patience(self) -> bool:
        """Whether so many steps in a row were skipped that the weights must be the cause."""
        return self.in_a_row >= self.config.patience

    def check_end(self, step: int, where: str, advice: str) -> None:
        """Raise Diverged if the training ends after ``step`` steps, all or the last few of which were non-finite.

        This holds for any patience: the weights are those of long before.

        Args:
            step: optimizer steps of the training.
            where: the training, for the message.
            advice: what to do, for the message.
        """
        if self.not_finite >= min(step, GuardConfig().patience):
            raise Diverged(
                f"{where}: diverged: loss or gradient was non-finite in the last {self.not_finite} of {step} steps: "
                f"{advice}"
            )

    def state(self) -> dict[str, Any]:
        """Return the state as plain JSON, the same on all ranks."""
        counts = {"skipped": self.skipped, "in_a_row": self.in_a_row, "not_finite": self.not_finite}
        return {**counts, "losses": list(self._losses), "norms": list(self._norms)}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.not_finite = state.get("not_finite", 0)
        self._take_window(state)

    def rollback(self, state: dict[str, Any]) -> None:
        """Restore the window of an earlier `state` and keep the counts: the weights went back, the run did not."""
        self.in_a_row = self.not_finite = 0
        self._take_window(state)

    def _take_window(self, state: dict[str, Any]) -> None:
        self._losses = deque(state["losses"], self.config.window)
        self._norms = deque(state["norms"], self.config.window)

    def _unusual(self, name: str, value: float, window: deque[float]) -> str | None:
        if not math.isfinite(value):
            return f"{name} is non-finite"
        if self.config.sigma and 2 * len(window) >= self.config.window:
            mean, spread = statistics.fmean(window), statistics.pstdev(window)
            if value > mean + self.config.sigma * max(spread, 0.01 * abs(mean)):
                return f"{name} {value:.4g} is above {mean:.4g} + {self.config.sigma:g} x {spread:.3g}"
        return None
