"""Single-label classification: every tile has one class."""

from typing import TYPE_CHECKING

import numpy as np

from finetune.metrics.scores import Scores, classification_scores
from finetune.tasks.kinds.classes import ClassKind

if TYPE_CHECKING:
    from torch import Tensor


class Classification(ClassKind):
    """A label is a class index, int16 of shape (). A tile's statistics are the predicted and the true class, (2,)."""

    features = "pooled"
    form = "class"
    labels_from = "tile_classes"
    published_heads = ("linear", "linear")
    loss = "cross_entropy"
    metrics = ("OA", "macro_f1", "average_accuracy")
    by_output = ("f1", "F1 by class")
    label_type = np.int16
    tile_type = np.int32
    map = "classes"

    def encode(self, raw: np.ndarray) -> np.ndarray | None:
        """Encode a code of shape (); a tile whose code is to be ignored is left out."""
        index = self.task.to_indices(raw)
        return None if index == self.task.ignore_index else index

    def count(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels, minlength=self.outputs + 1)

    def predict(self, scores: "Tensor") -> "Tensor":
        return scores.argmax(1)

    def blendable(self, scores: "Tensor") -> "Tensor":
        return scores.softmax(1)

    def votes(self, labels: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
        return np.eye(self.outputs, dtype=np.float32)[labels], np.ones(len(labels), bool)

    def from_votes(self, votes: "Tensor") -> "Tensor":
        return votes.argmax(1)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        return (2,)

    def accumulate(
        self, statistics: np.ndarray, predicted: np.ndarray, labels: np.ndarray, baseline: np.ndarray | None
    ) -> None:
        statistics[:] = predicted, labels

    def confusion(self, statistics: np.ndarray) -> np.ndarray:
        predicted, labels = statistics.astype(np.int64).T
        pairs = np.bincount(labels * self.outputs + predicted, minlength=self.outputs**2)
        return pairs.reshape(self.outputs, self.outputs)

    def scores(self, statistics: np.ndarray, baseline: np.ndarray | None = None) -> Scores:
        return classification_scores(self.confusion(statistics))

    def resampled(self, statistics: np.ndarray, weights: np.ndarray, baseline: np.ndarray | None = None) -> np.ndarray:
        total = weights.sum(1)
        hits = weights @ (statistics[:, 0] == statistics[:, 1])
        return np.where(total > 0, hits / np.maximum(total, 1e-12), np.nan)
