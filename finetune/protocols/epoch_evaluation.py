"""Validation at the end of epochs; the best weights are kept, and training ends when they get no better."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import FullConfig
from finetune.evaluation.selection import is_better
from finetune.metrics.scores import Scores
from finetune.tasks.kinds.kind import TaskKind
from pretrain.checkpointing.manager import CheckpointManager
from pretrain.console import log
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop


class EpochEvaluation(Callback):
    """Evaluates every ``recipe.evaluate_every`` epochs and after the last one.

    With ``recipe.start: probe``, it evaluates the probe itself as epoch 0, so that training can't end below its start
    on the validation tiles. With ``recipe.patience``, the training ends after that many evaluations without a better
    one.

    Args:
        name: name of the training, for the console.
        kind: task kind whose primary score or loss is compared.
        select: see FinetuneConfig.
        recipe: number of epochs, how often to evaluate, and patience.
        steps_per_epoch: optimizer steps per epoch.
        validate: returns the validation scores; called by every rank.
        checkpoints: checkpoints of the best weights so far.

    Attributes:
        best: best validation scores so far; None before the first evaluation with finite scores.
        best_epoch: their epoch.
        diverged: whether no epoch of training has had finite scores.
        curve: one dict per evaluation: epoch, the scores and, except at epoch 0, train_loss.
    """

    def __init__(
        self,
        name: str,
        kind: TaskKind,
        select: str,
        recipe: FullConfig,
        steps_per_epoch: int,
        validate: Callable[[], Scores],
        checkpoints: CheckpointManager,
    ) -> None:
        self.name, self.kind, self.select, self.recipe = name, kind, select, recipe
        self.steps_per_epoch, self.validate, self.checkpoints = steps_per_epoch, validate, checkpoints
        self.best: Scores | None = None
        self.best_epoch, self.diverged = 0, True
        self.curve: list[dict[str, float]] = []
        self._losses: list[float] = []  # losses since the last evaluation

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last ``recipe.patience`` evaluations were not better than one before them."""
        since_best = sum(point["epoch"] > self.best_epoch for point in self.curve)
        return self.recipe.patience is not None and since_best >= self.recipe.patience

    def on_start(self, loop: Loop) -> None:
        self._evaluate_if_due(loop)
        loop.stopping = loop.stopping or self.is_out_of_patience

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        if outcome.applied:
            self._losses.append(outcome.verdict.loss)
        if not loop.stopping:
            self._evaluate_if_due(loop)
            loop.stopping = loop.stopping or self.is_out_of_patience

    def state(self, loop: Loop) -> dict[str, Any]:
        best = None if self.best is None else asdict(self.best)
        selected = {"best": best, "best_epoch": self.best_epoch, "diverged": self.diverged}
        return {**selected, "curve": self.curve, "losses": self._losses}

    def load_state(self, loop: Loop, state: dict[str, Any], path: Path) -> None:
        self.best = None if state["best"] is None else Scores(**state["best"])
        self.best_epoch, self.diverged = state["best_epoch"], state["diverged"]
        self.curve, self._losses = state["curve"], state["losses"]

    def _evaluate_if_due(self, loop: Loop) -> None:
        epoch, within = divmod(loop.step, self.steps_per_epoch)
        first = 0 if self.recipe.start == "probe" else 1
        evaluated = self.curve[-1]["epoch"] if self.curve else first - 1
        is_due = epoch % self.recipe.evaluate_every == 0 or loop.is_last
        if within == 0 and epoch > evaluated and is_due:
            self._evaluate(loop, epoch)

    def _evaluate(self, loop: Loop, epoch: int) -> None:
        loop.watchdog.begin("evaluation", loop.step)
        scores = self.validate()
        train_loss = float(np.mean(self._losses)) if self._losses else float("nan")  # all skipped
        self._losses = []
        values = {f"validation_{key}" if key == "loss" else key: value for key, value in scores.values.items()}
        self.curve.append({"epoch": epoch, **({"train_loss": train_loss} if epoch else {}), **values})
        primary, trained = self.kind.primary, f"loss {train_loss:.4f}" if epoch else "the frozen protocol's head"
        log(
            f"{self.name}  epoch {epoch}/{self.recipe.epochs}  {trained}  validation loss "
            f"{scores.values['loss']:.4f}  {primary} {scores.values[primary]:.3f}"
        )
        self.diverged = self.diverged and not (epoch and scores.are_finite)
        if is_better(self.kind, self.select, scores, self.best):
            self.best, self.best_epoch = scores, epoch
            loop.save(self.checkpoints)
