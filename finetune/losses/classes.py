"""Cross-entropies and the focal loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.losses.loss import Loss, class_weights
from finetune.losses.registry import BinaryCrossEntropyConfig, CrossEntropyConfig, FocalConfig
from finetune.tasks.kinds.kind import LabelSummary, TaskKind


class CrossEntropy(Loss):
    """Cross-entropy of class indices; labels with the index C do not count."""

    config: CrossEntropyConfig

    def __init__(self, config: CrossEntropyConfig, kind: TaskKind, labels: LabelSummary) -> None:
        super().__init__(config, kind, labels)
        self.weights = class_weights(config, labels)

    def sum(self, scores: Tensor, labels: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(scores.device)
        ignored = int(self.kind.fill)
        return F.cross_entropy(scores.float(), labels.long(), weights, ignore_index=ignored, reduction="sum")

    def count(self, labels: Tensor) -> float:
        return label_weight(labels, self.weights, int(self.kind.fill))


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of each class; class weights weigh the tiles in which a class occurs."""

    config: BinaryCrossEntropyConfig

    def __init__(self, config: BinaryCrossEntropyConfig, kind: TaskKind, labels: LabelSummary) -> None:
        super().__init__(config, kind, labels)
        self.weights = class_weights(config, labels)

    def sum(self, scores: Tensor, labels: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(scores.device)
        return F.binary_cross_entropy_with_logits(scores.float(), labels.float(), pos_weight=weights, reduction="sum")

    def count(self, labels: Tensor) -> float:
        return labels.numel()


class Focal(Loss):
    """Focal loss, of one class a label or of several."""

    config: FocalConfig

    def __init__(self, config: FocalConfig, kind: TaskKind, labels: LabelSummary) -> None:
        super().__init__(config, kind, labels)
        self.weights = class_weights(config, labels)

    def sum(self, scores: Tensor, labels: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(scores.device)
        if self.kind.form == "classes":
            hot = labels.float()
            loss = F.binary_cross_entropy_with_logits(scores.float(), hot, reduction="none")
            focal = (1 - torch.exp(-loss)) ** self.config.gamma * loss
            return (focal if weights is None else focal * (1 + (weights - 1) * hot)).sum()
        ignored = int(self.kind.fill)
        loss = F.cross_entropy(scores.float(), labels.long(), ignore_index=ignored, reduction="none")
        focal = (1 - torch.exp(-loss)) ** self.config.gamma * loss
        return (focal if weights is None else focal * weight_map(labels, weights)).sum()

    def count(self, labels: Tensor) -> float:
        if self.kind.form == "classes":
            return labels.numel()
        return label_weight(labels, self.weights, int(self.kind.fill))


def weight_map(labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of each label's class, float32 of the shape of labels; 0 for index C."""
    return F.pad(weights, (0, 1))[labels.long()]


def label_weight(labels: Tensor, weights: Tensor | None, ignored: int) -> float:
    """Return the number of labels that count, or the sum of their classes' weights."""
    if weights is None:
        return int((labels != ignored).sum())
    return float(weight_map(labels, weights.to(labels.device)).sum(dtype=torch.float64))
