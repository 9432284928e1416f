"""Frozen protocol: all heads, rates and seeds, trained in one pass over the features of an encoder.

Heads with the same seed share order and views, so each batch of features is fetched once for all of them.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.batches import epoch_order
from finetune.data.datasets import orient
from finetune.encoders.features import Features
from finetune.evaluation.collector import Evaluation
from finetune.evaluation.context import EvaluationContext
from finetune.evaluation.selection import is_better
from finetune.heads.inputs import HeadInput
from finetune.heads.registry import HeadConfig
from finetune.metrics.scores import Scores
from pretrain.console import log
from pretrain.engine.optimizers import build_adamw
from pretrain.engine.schedules import warmup_cosine
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.encoder import Encoder
from shards.errors import ForgeError

EVALUATION_BATCH = 64


class HeadsDiverged(ForgeError):
    """A head had non-finite losses at every learning rate."""

    exit_code = 76


@dataclass
class Trial:
    """One head at one rate with one seed.

    Attributes:
        stale: evaluations since the best one.
        diverged_at: epoch in which its losses or scores were non-finite; such a trial is never selected.
    """

    head_config: HeadConfig
    lr: float
    seed: int
    head: nn.Module
    optimizer: torch.optim.Optimizer
    best: Scores | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    stale: int = 0
    diverged_at: int | None = None


@dataclass(frozen=True)
class Trained:
    """The best trial of one head and seed, tested once."""

    trial: Trial
    test: Evaluation


class HeadSweep:
    """The heads of one encoder on one fraction of the training tiles.

    Args:
        encoder: determines the width and stride of the features.
        features: features by split.
        rows: training windows.
        heads: heads to train.
        source: which features they are; None for the map, or pooled features.
    """

    def __init__(
        self,
        context: EvaluationContext,
        encoder: Encoder,
        features: dict[str, Features],
        rows: np.ndarray,
        heads: tuple[HeadConfig, ...],
        source: HeadInput | None = None,
    ) -> None:
        self.context, self.encoder, self.features, self.rows, self.heads = context, encoder, features, rows, heads
        self.source = source or HeadInput(context.kind.features)
        self.kind, self.config, self.select = context.kind, context.recipe.frozen, context.recipe.select
        self.loss = context.loss(rows)
        self.labels = context.splits["train"].labels
        # a fraction of the tiles takes as many steps as all of them
        self.steps_per_epoch = -(-len(self.labels) // self.config.batch)

    def run(self, seeds: tuple[int, ...]) -> list[Trained]:
        """Train with these seeds, and test the rate with the best validation score for each head and seed.

        Raises:
            HeadsDiverged: a head diverged at every rate.
        """
        trials = [self._trial(head, lr, seed) for seed in seeds for head in self.heads for lr in self.config.lrs]
        epochs = self.config.epochs
        for epoch in range(epochs):
            learning = [trial for trial in trials if self._is_learning(trial)]
            if not learning:
                break
            for seed in dict.fromkeys(trial.seed for trial in learning):
                self._train_epoch([trial for trial in learning if trial.seed == seed], epoch)
            if (epoch + 1) % self.config.evaluate_every == 0 or epoch + 1 == epochs:
                self._validate(learning, epoch + 1)
                self.context.heartbeat(epoch + 1)
        return self._test([self._choose(trials, seed, head) for seed in seeds for head in self.heads])

    def _is_learning(self, trial: Trial) -> bool:
        return self.config.patience is None or trial.stale < self.config.patience

    def _choose(self, trials: list[Trial], seed: int, head: HeadConfig) -> Trial:
        """Return the trial of a seed and head with the best validation score."""
        best: Trial | None = None
        for trial in trials:
            if (trial.seed, trial.head_config) == (seed, head) and trial.diverged_at is None:
                assert trial.best is not None
                if is_better(self.kind, self.select, trial.best, None if best is None else best.best):
                    best = trial
        if best is None:
            rates = ", ".join(f"{lr:g}" for lr in self.config.lrs)
            raise HeadsDiverged(f"frozen: head '{head.label}' diverged at every rate ({rates}): lower frozen.lrs")
        return best

    def _trial(self, config: HeadConfig, lr: float, seed: int) -> Trial:
        head = self.context.head(config, self.encoder, self.source, seed, self.rows).to(self._device)
        return Trial(config, lr, seed, head, build_adamw(head, lr, (0.9, 0.999), self.config.weight_decay))

    @property
    def _device(self) -> torch.device:
        return self.features["train"].batch(self.rows[:1], np.zeros(1, np.int64)).device

    def _train_epoch(self, trials: list[Trial], epoch: int) -> None:
        """Train all heads of one seed for one epoch."""
        seed = trials[0].seed
        torch.manual_seed(seed * 100_003 + epoch)  # seeds dropout
        for number, (indices, draws) in enumerate(self._batches(seed, epoch)):
            rows = self.rows[indices]
            views = draws % self.features["train"].views
            features = self.features["train"].batch(rows, views)
            labels = torch.from_numpy(self._turned(self.labels[rows], views)).to(features.device)
            lr_share = self._lr_share(epoch * self.steps_per_epoch + number)
            for trial in trials:
                self._step(trial, features, labels, lr_share)

    def _batches(self, seed: int, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the batches of an epoch, as many as an epoch of all tiles has."""
        batches: list[tuple[np.ndarray, np.ndarray]] = []
        repeat = 0
        while len(batches) < self.steps_per_epoch:
            batches += epoch_order(len(self.rows), self.config.batch, seed, epoch * 100_000 + repeat)
            repeat += 1
        return batches[: self.steps_per_epoch]

    def _turned(self, labels: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Return labels in the same views as the images."""
        if not self.kind.is_dense:
            return labels
        return np.stack([orient(label, int(view)) for label, view in zip(labels, views, strict=True)])

    def _lr_share(self, step: int) -> float:
        return warmup_cosine(step, self.config.epochs * self.steps_per_epoch, 0, 1.0, 0.0)

    def _step(self, trial: Trial, features: Tensor, labels: Tensor, lr_share: float) -> None:
        trial.head.train()
        loss = self.loss.mean(trial.head(features), labels)
        for group in trial.optimizer.param_groups:
            group["lr"] = trial.lr * lr_share
        trial.optimizer.zero_grad()
        loss.backward()
        trial.optimizer.step()
        for norm in grouped_batch_norms(trial.head):
            norm.move(*norm.flush())
        trial.losses.append(loss.detach())

    def _validate(self, trials: list[Trial], epoch: int) -> None:
        """Compute the validation scores of all heads, and keep each head's best weights."""
        for trial, evaluation in zip(trials, self._evaluate(trials, "val"), strict=True):
            train_loss = float(torch.stack(trial.losses).mean())
            trial.losses.clear()
            values = {
                f"validation_{name}" if name == "loss" else name: value
                for name, value in evaluation.scores.values.items()
            }
            trial.curve.append({"epoch": epoch, "train_loss": train_loss, **values})
            if trial.diverged_at is None and not (math.isfinite(train_loss) and evaluation.scores.are_finite):
                trial.diverged_at = epoch
                head = trial.head_config.label
                log(f"WARNING: frozen: head '{head}' diverged at lr {trial.lr:g} by epoch {epoch}: excluded")
            trial.stale += 1
            if is_better(self.kind, self.select, evaluation.scores, trial.best):
                trial.best, trial.best_epoch, trial.stale = evaluation.scores, epoch, 0
                trial.best_weights = {name: tensor.detach().clone() for name, tensor in trial.head.state_dict().items()}

    def _test(self, trials: list[Trial]) -> list[Trained]:
        for trial in trials:
            trial.head.load_state_dict(trial.best_weights)
        evaluations = self._evaluate(trials, "test")
        return [Trained(trial, evaluation) for trial, evaluation in zip(trials, evaluations, strict=True)]

    @torch.no_grad()
    def _evaluate(self, trials: list[Trial], name: str) -> list[Evaluation]:
        split = self.context.splits[name]
        collectors = [self.context.collector(name, self.loss) for _ in trials]
        for begin in range(0, len(split), EVALUATION_BATCH):
            rows = np.arange(begin, min(begin + EVALUATION_BATCH, len(split)))
            features = self.features[name].batch(rows, np.zeros(len(rows), np.int64))
            for trial, collector in zip(trials, collectors, strict=True):
                trial.head.eval()
                collector.add_scores(rows, trial.head(features))
        return [collector.finish() for collector in collectors]
