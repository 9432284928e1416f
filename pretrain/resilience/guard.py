"""Which steps are applied: a loss or gradient norm that is no number, or far above those before, skips the step.

One all-reduce a step carries the loss and whether any rank was asked to stop; the gradient norm is global already.
So every rank has the same numbers and comes to the same decision, between DeepSpeed's norm and its update
(pretrain/engine/deepspeed_adapter.py), where DeepSpeed itself waits for the norm.

A skipped step takes its place all the same: its samples count as seen, and learning rate and order go on as planned;
weights, moments, batch norms, momentum networks and queues stay as they were.
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


class Diverged(ForgeError):
    """Steps are skipped again and again, and going back to a checkpoint did not help."""

    exit_code = 76
    everywhere = True


@dataclass(frozen=True)
class Verdict:
    """On one step, the same on all ranks.

    Attributes:
        loss: mean over the global batch.
        grad_norm: before clipping; NaN where the gradient is no number.
        reason: why the step is skipped, None where it is applied.
        stop: whether any rank was asked to stop.
    """

    loss: float
    grad_norm: float
    reason: str | None
    stop: bool


class Guard:
    """Judges the steps of a run.

    Args:
        config: window, sigma and patience.

    Attributes:
        skipped: steps skipped since the start of the run.
        in_a_row: of them, those since the last applied step.
        not_finite: of those, the last ones whose loss or gradient was no number.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped = self.in_a_row = self.not_finite = 0
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)

    def judge(self, loss: Tensor, grad_norm: Tensor | float, stop: bool) -> Verdict:
        """Decide on a step; every rank calls it.

        Args:
            loss: this rank's mean, on the device.
            grad_norm: global; negative or not finite where the gradient is no number.
            stop: whether this rank was asked to stop.
        """
        mine = torch.stack([loss.double(), torch.tensor(float(stop), dtype=torch.float64, device=loss.device)])
        total, stops = distributed.all_reduce_sum(mine).tolist()
        mean, norm = total / distributed.world_size(), float(grad_norm)
        norm = norm if norm >= 0 and math.isfinite(norm) else math.nan
        reason = self._unusual("loss", mean, self._losses) or self._unusual("gradient norm", norm, self._norms)
        if reason is None:
            self._losses.append(mean)
            self._norms.append(norm)
            self.in_a_row = self.not_finite = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
            self.not_finite = 0 if math.isfinite(mean) and math.isfinite(norm) else self.not_finite + 1
        return Verdict(mean, norm, reason, stops > 0)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether so many steps in a row were skipped that the weights must be what is wrong."""
        return self.in_a_row >= self.config.patience

    def check_end(self, step: int, where: str, advice: str) -> None:
        """Raise Diverged where a training that ends after ``step`` steps has skipped all, or the last few of them, for
        losses that are no numbers, whatever its patience: its weights are of long before."""
        if self.not_finite >= min(step, GuardConfig().patience):
            raise Diverged(
                f"{where}: diverged: loss or gradient was no number in the last {self.not_finite} of {step} steps: "
                f"{advice}"
            )

    def state(self) -> dict[str, Any]:
        """Plain JSON; the same on all ranks."""
        counts = {"skipped": self.skipped, "in_a_row": self.in_a_row, "not_finite": self.not_finite}
        return {**counts, "losses": list(self._losses), "norms": list(self._norms)}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` told."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        self.not_finite = state.get("not_finite", 0)
        self._take_window(state)

    def rollback(self, state: dict[str, Any]) -> None:
        """Take over the window of an earlier `state`, but keep the count: the weights went back, the run did not."""
        self.in_a_row = self.not_finite = 0
        self._take_window(state)

    def _take_window(self, state: dict[str, Any]) -> None:
        self._losses = deque(state["losses"], self.config.window)
        self._norms = deque(state["norms"], self.config.window)

    def _unusual(self, name: str, value: float, window: deque[float]) -> str | None:
        if not math.isfinite(value):
            return f"{name} is no number"
        if self.config.sigma and 2 * len(window) >= self.config.window:
            mean, spread = statistics.fmean(window), statistics.pstdev(window)
            if value > mean + self.config.sigma * max(spread, 0.01 * abs(mean)):
                return f"{name} {value:.4g} is above {mean:.4g} + {self.config.sigma:g} x {spread:.3g}"
        return None
