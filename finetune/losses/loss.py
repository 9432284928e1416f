"""What a loss is: a sum over labels, and what to divide it by.

A batch is cut into micro batches on several ranks, so a loss is summed over each, and divided by the count of the whole
batch. Whatever the number of ranks, the same batch has the same loss.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.losses.registry import LOSSES, LossConfig
from finetune.tasks.kinds.kind import LabelSummary, TaskKind


class Loss(ABC):
    """A loss of one task.

    Args:
        labels: of the training, for weights that depend on them.
    """

    def __init__(self, config: Any, kind: TaskKind, labels: LabelSummary) -> None:
        self.config, self.kind = config, kind

    @abstractmethod
    def sum(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Sum the loss over all labels that count, a float32 scalar.

        Args:
            scores: (B, K), or (B, K, S, S).
            labels: as the kind encodes them, on the same device.
        """

    @abstractmethod
    def count(self, labels: Tensor) -> float:
        """Return what `sum` is divided by; sums over parts of a batch go with the count of the whole batch."""

    def mean(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one batch that is not divided."""
        return self.sum(scores, labels) / (self.count(labels) or 1)


def build_loss(config: LossConfig, kind: TaskKind, labels: LabelSummary) -> Loss:
    """Build a loss for a task from its config."""
    return LOSSES[config.name](config, kind, labels)


def class_weights(config: Any, labels: LabelSummary) -> Tensor | None:
    """Return the weight of each class, float32 (C,), of a config's ``class_weights``; None weighs all alike.

    Balanced weights are n / (C * n_c) for n labels, n_c of them of class c (King & Zeng 2001, as in scikit-learn); a
    class without a label has the weight 1.
    """
    if config.class_weights is None:
        return None
    if config.class_weights != "balanced":
        return torch.tensor(config.class_weights, dtype=torch.float32)
    assert labels.counts is not None
    counts = labels.counts.astype(np.float64)
    balanced = np.where(counts > 0, counts.sum() / (len(counts) * np.maximum(counts, 1)), 1.0)
    return torch.from_numpy(balanced.astype(np.float32))
