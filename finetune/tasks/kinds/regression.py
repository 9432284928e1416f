"""Regression: every tile has a value for each target, from a table."""

from typing import TYPE_CHECKING

import numpy as np

from finetune.metrics.scores import Scores, regression_scores
from finetune.tasks.kinds.kind import LabelSummary
from finetune.tasks.kinds.targets import TargetKind

if TYPE_CHECKING:
    from torch import Tensor


class Regression(TargetKind):
    """Labels are values, float32 (T,). A tile's statistics are predictions and true values, (2, T)."""

    features = "pooled"
    labels_from = "tables"
    splits_by_place = False  # HYPERVIEW's tables share fields
    published_heads = ("mlp", "mlp")
    metrics = ("hyperview_score", "RMSE", "R2")
    by_output = ("rmse", "RMSE by target (lower is better)")

    def encode(self, raw: np.ndarray) -> np.ndarray:
        return raw.astype(np.float32)

    def summarize(self, labels: np.ndarray) -> LabelSummary:
        return LabelSummary(mean=labels.mean(0).astype(np.float64), std=labels.std(0).astype(np.float64))

    def predict(self, scores: "Tensor") -> "Tensor":
        return scores.float()

    def blendable(self, scores: "Tensor") -> "Tensor":
        return scores.float()

    def votes(self, labels: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
        return labels, np.ones(len(labels), bool)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        return 2, self.outputs

    def accumulate(
        self, statistics: np.ndarray, predicted: np.ndarray, labels: np.ndarray, baseline: np.ndarray | None
    ) -> None:
        statistics[:] = predicted, labels

    def scores(self, statistics: np.ndarray, baseline: np.ndarray | None = None) -> Scores:
        assert baseline is not None
        baseline_error = ((statistics[:, 1] - baseline) ** 2).mean(0)
        return regression_scores(statistics[:, 0], statistics[:, 1], baseline_error)

    def resampled(self, statistics: np.ndarray, weights: np.ndarray, baseline: np.ndarray | None = None) -> np.ndarray:
        assert baseline is not None
        error = (statistics[:, 0] - statistics[:, 1]) ** 2
        reference = (statistics[:, 1] - baseline) ** 2
        return ((weights @ error) / np.maximum(weights @ reference, 1e-12)).mean(1)
