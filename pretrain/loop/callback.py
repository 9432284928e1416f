"""Callbacks: what happens around the steps of a training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pretrain.resilience.guard import Verdict

if TYPE_CHECKING:
    from pretrain.checkpointing.manager import Saved
    from pretrain.loop.loop import Loop


@dataclass(frozen=True)
class Outcome:
    """What came of a step.

    Attributes:
        verdict: loss, gradient norm, and why the step was skipped; the same on all ranks.
        applied: whether the weights moved.
        losses: of this rank's micro batches, (A,), on the device.
        samples: sample numbers of each micro batch.
    """

    verdict: Verdict
    applied: bool
    losses: Tensor
    samples: list[np.ndarray]


class Callback:
    """Acts at some moments of a training; a subclass overrides those that it needs.

    Every rank has the same callbacks, so that their methods may call collectives. A callback that sets
    ``loop.stopping`` does so on all ranks at the same step.
    """

    def on_start(self, loop: "Loop") -> None:
        """Called before the first step of this process, after a resume."""

    def before_step(self, loop: "Loop") -> None:
        """Called before each step."""

    def after_step(self, loop: "Loop", outcome: Outcome) -> None:
        """Called after each step; ``loop.step`` counts it."""

    def on_log(self, loop: "Loop", scalars: dict[str, float], figures: dict[str, bytes]) -> None:
        """Called with what is logged of a step: scalars of training and of evaluations, and on rank 0 figures (PNG)."""

    def on_save(self, loop: "Loop", saved: "Saved") -> None:
        """Called when a checkpoint is complete, some steps after that of its name if it was written meanwhile."""

    def on_end(self, loop: "Loop") -> None:
        """Called after the last step of this process, also when an exception ends it: no place for collectives."""

    def scalars(self, loop: "Loop") -> dict[str, float]:
        """Return scalars to log at a log step, the same names on all ranks."""
        return {}

    def state(self, loop: "Loop") -> dict[str, Any]:
        """Return the state to store in checkpoints: plain JSON under unique names, the same on all ranks."""
        return {}

    def load_state(self, loop: "Loop", state: dict[str, Any], path: Path) -> None:
        """Take over what `state` returned, from all that is in the checkpoint ``path``.

        Called at a resume, and when the weights go back to an earlier checkpoint.
        """
