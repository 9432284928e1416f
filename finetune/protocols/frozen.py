"""Frozen protocol: all heads at all rates for all seeds, trained in one pass over the features of an encoder.

Heads of one seed share order and views, so each batch of features is fetched once for all of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from finetune.config import FrozenConfig
from finetune.data.datasets import LabeledSplit, view_of
from finetune.encoders.features import Features
from finetune.heads.heads import HeadName, build_head, count_labels, summed_loss
from finetune.metrics.scores import Scores
from finetune.metrics.scoring import Collector, Evaluation, epoch_order, is_better
from finetune.tasks import Task
from pretrain.console import log
from pretrain.engine.optimizers import build_adamw
from pretrain.engine.schedules import warmup_cosine
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.initialize import initialize
from shards.errors import ForgeError

EVALUATION_BATCH = 64


class HeadsDiverged(ForgeError):
    """Training a kind of head came to losses that aren't finite at every learning rate."""

    exit_code = 76


@dataclass
class Member:
    """One head of the sweep.

    Attributes:
        diverged_at: epoch by which its losses or scores were no longer finite: it is not chosen, whatever its best.
    """

    name: HeadName
    lr: float
    seed: int
    head: nn.Module
    optimizer: torch.optim.Optimizer
    best: Scores | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    diverged_at: int | None = None


@dataclass(frozen=True)
class Trained:
    """The best head of one kind for one seed, tested once."""

    member: Member
    test: Evaluation


class Sweep:
    """The heads of one encoder on one share of the training tiles.

    Args:
        features, splits: by split.
        rows: training windows.
        stride, width: of the encoder's features.
        names: of the heads.
        select: see FinetuneConfig.
        baseline: regression: the training mean of each target.
        alive: called at every evaluation with the epoch.
    """

    def __init__(
        self,
        features: dict[str, Features],
        splits: dict[str, LabeledSplit],
        rows: np.ndarray,
        task: Task,
        stride: int,
        width: int,
        names: tuple[HeadName, ...],
        config: FrozenConfig,
        select: str,
        baseline: np.ndarray | None,
        alive: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.features, self.splits, self.rows, self.task = features, splits, rows, task
        self.stride, self.width, self.names, self.config = stride, width, names, config
        self.select, self.baseline, self.alive = select, baseline, alive
        labels = splits["train"].labels
        self.steps_per_epoch = -(-len(labels) // config.batch)  # a smaller share takes as many steps as all tiles

    def run(self, seeds: tuple[int, ...]) -> list[Trained]:
        """Train for these seeds; of each kind of head and seed, the rate with the best validation score is tested.

        Raises:
            HeadsDiverged: a kind of head diverged at every rate.
        """
        members = [self._member(name, lr, seed) for seed in seeds for name in self.names for lr in self.config.lrs]
        epochs = self.config.epochs
        for epoch in range(epochs):
            for seed in seeds:
                self._train_epoch([one for one in members if one.seed == seed], epoch)
            if (epoch + 1) % self.config.evaluate_every == 0 or epoch + 1 == epochs:
                self._validate(members, epoch + 1)
                self.alive(epoch + 1)
        return self._test([self._choose(members, seed, name) for seed in seeds for name in self.names])

    def _choose(self, members: list[Member], seed: int, name: str) -> Member:
        """Of a seed and kind of head, the rate with the best validation score."""
        best: Member | None = None
        for one in members:
            if (one.seed, one.name) == (seed, name) and one.diverged_at is None:
                assert one.best is not None
                if is_better(self.task, self.select, one.best, None if best is None else best.best):
                    best = one
        if best is None:
            rates = ", ".join(f"{lr:g}" for lr in self.config.lrs)
            raise HeadsDiverged(f"frozen: head '{name}' diverged at every rate ({rates}): lower frozen.lrs")
        return best

    def _member(self, name: HeadName, lr: float, seed: int) -> Member:
        head = build_head(name, self.task.kind, self.width, len(self.task.outputs), self.stride)
        initialize(head, f"head.{name}", seed)
        head.to(self._device)
        return Member(name, lr, seed, head, build_adamw(head, lr, (0.9, 0.999), self.config.weight_decay))

    @property
    def _device(self) -> torch.device:
        return self.features["train"].batch(self.rows[:1], np.zeros(1, np.int64)).device

    def _train_epoch(self, members: list[Member], epoch: int) -> None:
        """One epoch of all heads of one seed."""
        seed, labels = members[0].seed, self.splits["train"].labels
        torch.manual_seed(seed * 100_003 + epoch)  # of dropout
        for number, (places, draws) in enumerate(self._batches(seed, epoch)):
            rows = self.rows[places]
            views = draws % self.features["train"].views
            features = self.features["train"].batch(rows, views)
            wanted = torch.from_numpy(self._seen(labels[rows], views)).to(features.device)
            lr_share = self._lr_share(epoch * self.steps_per_epoch + number)
            for member in members:
                self._step(member, features, wanted, lr_share)

    def _batches(self, seed: int, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """As many as an epoch of all tiles has."""
        batches: list[tuple[np.ndarray, np.ndarray]] = []
        turn = 0
        while len(batches) < self.steps_per_epoch:
            batches += epoch_order(len(self.rows), self.config.batch, seed, epoch * 100_000 + turn)
            turn += 1
        return batches[: self.steps_per_epoch]

    def _seen(self, labels: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Labels as the views show them."""
        if self.task.kind != "segmentation":
            return labels
        return np.stack([view_of(one, int(view)) for one, view in zip(labels, views, strict=True)])

    def _lr_share(self, step: int) -> float:
        return warmup_cosine(step, self.config.epochs * self.steps_per_epoch, 0, 1.0, 0.0)

    def _step(self, member: Member, features: Tensor, labels: Tensor, lr_share: float) -> None:
        member.head.train()
        counted = max(1, count_labels(self.task.kind, labels, self.task.ignore_index))
        loss = summed_loss(self.task.kind, member.head(features), labels, self.task.ignore_index) / counted
        for group in member.optimizer.param_groups:
            group["lr"] = member.lr * lr_share
        member.optimizer.zero_grad()
        loss.backward()
        member.optimizer.step()
        for norm in grouped_batch_norms(member.head):
            norm.move(norm.flush())
        member.losses.append(loss.detach())

    def _validate(self, members: list[Member], epoch: int) -> None:
        """Validation scores of all heads; a head's best weights are kept."""
        for member, found in zip(members, self._evaluate(members, "val"), strict=True):
            train_loss = float(torch.stack(member.losses).mean())
            member.losses.clear()
            values = {
                f"validation_{name}" if name == "loss" else name: value for name, value in found.scores.values.items()
            }
            member.curve.append({"epoch": epoch, "train_loss": train_loss, **values})
            if member.diverged_at is None and not (math.isfinite(train_loss) and found.scores.are_finite):
                member.diverged_at = epoch
                log(f"WARNING: frozen: head '{member.name}' diverged at lr {member.lr:g} by epoch {epoch}: left out")
            if is_better(self.task, self.select, found.scores, member.best):
                member.best, member.best_epoch = found.scores, epoch
                member.best_weights = {name: one.detach().clone() for name, one in member.head.state_dict().items()}

    def _test(self, members: list[Member]) -> list[Trained]:
        for member in members:
            member.head.load_state_dict(member.best_weights)
        found = self._evaluate(members, "test")
        return [Trained(member, one) for member, one in zip(members, found, strict=True)]

    @torch.no_grad()
    def _evaluate(self, members: list[Member], name: str) -> list[Evaluation]:
        split = self.splits[name]
        collectors = [Collector(split, self.task, self.baseline) for _ in members]
        for begin in range(0, len(split), EVALUATION_BATCH):
            rows = np.arange(begin, min(begin + EVALUATION_BATCH, len(split)))
            features = self.features[name].batch(rows, np.zeros(len(rows), np.int64))
            for member, collector in zip(members, collectors, strict=True):
                member.head.eval()
                collector.add_scores(rows, member.head(features))
        return [collector.finish() for collector in collectors]
