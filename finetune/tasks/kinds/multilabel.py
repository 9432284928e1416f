"""Multi-label classification: any number of classes occurs in a tile."""

from typing import TYPE_CHECKING

import numpy as np

from finetune.metrics.resampled import average_precisions, mean_of_defined
from finetune.metrics.scores import Scores, multilabel_scores
from finetune.tasks.kinds.classes import ClassKind
from shards.sensors.sensor import NODATA

if TYPE_CHECKING:
    from torch import Tensor


class Multilabel(ClassKind):
    """Labels are which classes occur, uint8 (C,). A tile's statistics are probabilities and labels, (2, C)."""

    features = "pooled"
    form = "classes"
    published_heads = ("linear", "linear")
    loss = "binary_cross_entropy"
    metrics = ("mAP", "micro_mAP", "macro_f1", "micro_f1", "OA")
    by_output = ("average_precision", "Average precision by class")

    def encode(self, raw: np.ndarray) -> np.ndarray | None:
        """Encode label codes (height, width); a tile without any label says nothing of any class, and is left out."""
        return None if (raw == NODATA).all() else self.task.to_multihot(raw)

    def count(self, labels: np.ndarray) -> np.ndarray:
        return np.append(labels.sum(0, dtype=np.int64), (~labels.any(1)).sum())

    def predict(self, scores: "Tensor") -> "Tensor":
        return scores.float().sigmoid()

    def blendable(self, scores: "Tensor") -> "Tensor":
        return scores.sigmoid()

    def votes(self, labels: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
        return labels.astype(np.float32), np.ones(len(labels), bool)

    def confidences(
        self, probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability that each class occurs, and whether it does."""
        return probabilities, labels > 0

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        return 2, self.outputs

    def accumulate(
        self, statistics: np.ndarray, predicted: np.ndarray, labels: np.ndarray, baseline: np.ndarray | None
    ) -> None:
        statistics[:] = predicted, labels

    def scores(self, statistics: np.ndarray, baseline: np.ndarray | None = None) -> Scores:
        return multilabel_scores(statistics[:, 0], statistics[:, 1] > 0.5)

    def resampled(self, statistics: np.ndarray, weights: np.ndarray, baseline: np.ndarray | None = None) -> np.ndarray:
        columns = (statistics[:, :, output] for output in range(self.outputs))
        return mean_of_defined(
            np.stack([average_precisions(column[:, 0], column[:, 1], weights) for column in columns])
        )
