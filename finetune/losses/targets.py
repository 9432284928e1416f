"""Losses of numbers. Values that are NaN do not count."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.losses.loss import Loss
from finetune.losses.registry import HuberConfig
from finetune.tasks.kinds.kind import LabelSummary, TaskKind


class TargetLoss(Loss):
    """A loss of differences; of kinds that standardize targets, in units of the training labels' deviation."""

    def __init__(self, config: Any, kind: TaskKind, labels: LabelSummary) -> None:
        super().__init__(config, kind, labels)
        self.scale = torch.from_numpy(labels.std).float() if kind.standardize and labels.std is not None else None

    def sum(self, scores: Tensor, labels: Tensor) -> Tensor:
        scores, labels = scores.float(), labels.float()
        labels = torch.where(labels.isnan(), scores.detach(), labels)  # no difference, no gradient
        if self.scale is not None:
            scale = self.scale.to(scores.device).view(-1, *(1,) * (scores.dim() - 2))
            scores, labels = scores / scale, labels / scale
        return self.compare(scores, labels)

    def count(self, labels: Tensor) -> float:
        return int((~labels.isnan()).sum())

    @abstractmethod
    def compare(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Sum the loss of all differences."""


class SquaredError(TargetLoss):
    """Squared differences."""

    def compare(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(scores, labels, reduction="sum")


class AbsoluteError(TargetLoss):
    """Absolute differences."""

    def compare(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.l1_loss(scores, labels, reduction="sum")


class Huber(TargetLoss):
    """Squared differences below ``delta``, absolute ones above."""

    config: HuberConfig

    def compare(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.huber_loss(scores, labels, reduction="sum", delta=self.config.delta)
