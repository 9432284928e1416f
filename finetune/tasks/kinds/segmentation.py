"""Segmentation: every pixel has one class."""

from typing import TYPE_CHECKING

import numpy as np

from finetune.metrics.resampled import mean_iou
from finetune.metrics.scores import Scores, segmentation_scores, tile_confusion
from finetune.tasks.kinds.classes import ClassKind

if TYPE_CHECKING:
    from torch import Tensor


class Segmentation(ClassKind):
    """Labels are class indices, int16 (S, S); C does not count. A tile's statistics are its confusion matrix (C, C),
    labels in rows."""

    features = "map"
    form = "class"
    published_heads = ("conv", "fcn")
    loss = "cross_entropy"
    metrics = ("mIoU", "macro_f1", "OA", "average_accuracy", "micro_iou")
    by_output = ("iou", "IoU by class")
    label_type = np.int16
    tile_type = np.int32
    map = "classes"
    label_unit = "px"

    def encode(self, raw: np.ndarray) -> np.ndarray:
        return self.task.to_indices(raw)

    def count(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels.ravel(), minlength=self.outputs + 1)

    def predict(self, scores: "Tensor") -> "Tensor":
        return scores.argmax(1)

    def blendable(self, scores: "Tensor") -> "Tensor":
        return scores.softmax(1)

    def votes(self, labels: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Let a position vote for the class that most of its pixels have."""
        side = labels.shape[1] // grid
        cells = labels.reshape(len(labels), grid, side, grid, side)
        counts = np.stack([(cells == index).sum((2, 4)) for index in range(self.outputs)], -1)
        votes = np.eye(self.outputs, dtype=np.float32)[counts.argmax(-1)]
        return votes, np.asarray(counts.any(-1))

    def from_votes(self, votes: "Tensor") -> "Tensor":
        return votes.argmax(1)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        return self.outputs, self.outputs

    def accumulate(
        self, statistics: np.ndarray, predicted: np.ndarray, labels: np.ndarray, baseline: np.ndarray | None
    ) -> None:
        statistics += tile_confusion(predicted, labels, self.outputs)

    def scores(self, statistics: np.ndarray, baseline: np.ndarray | None = None) -> Scores:
        return segmentation_scores(statistics.sum(0, dtype=np.int64))

    def resampled(self, statistics: np.ndarray, weights: np.ndarray, baseline: np.ndarray | None = None) -> np.ndarray:
        summed = weights @ statistics.reshape(len(statistics), -1)
        return mean_iou(summed.reshape(len(weights), *statistics.shape[1:]))

    def confusion(self, statistics: np.ndarray) -> np.ndarray:
        return statistics.sum(0)

    def picture(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self.color(values)
