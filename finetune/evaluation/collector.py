"""Accumulation of a split's predictions into per-tile statistics and scores."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from finetune.data.datasets import LabeledSplit
from finetune.losses.loss import Loss
from finetune.metrics.calibration import BINS, SUMS, calibration_error, calibration_sums
from finetune.metrics.scores import Scores
from finetune.tasks.kinds.kind import TaskKind

EXAMPLES = 6
"""Number of test windows whose predictions are kept as pictures."""


@dataclass(frozen=True)
class Evaluation:
    """A split's scores.

    Attributes:
        scores: scores by name, including ``loss`` and, of test tiles with probabilities of classes, ``ECE``.
        statistics: per-tile statistics (tiles, *TaskKind.statistics_shape).
        maps: predictions for the windows of `example_rows`.
        calibration: `SUMS` by tile and bin of confidence, float32 (tiles, 3, BINS); (0,) without ``ECE``.
    """

    scores: Scores
    statistics: np.ndarray
    maps: np.ndarray
    calibration: np.ndarray = field(default_factory=lambda: np.zeros(0))


class Collector:
    """Collects predictions of a split in any order and on any rank; the sums of the ranks add up.

    Args:
        baseline: training mean of each target; None for classes.
        loss: loss to accumulate; None if predictions do not come from scores.
        calibrate: whether to compare probabilities with the labels.
    """

    def __init__(
        self,
        split: LabeledSplit,
        kind: TaskKind,
        baseline: np.ndarray | None,
        loss: Loss | None = None,
        calibrate: bool = False,
    ) -> None:
        self.split, self.kind, self.baseline, self.loss = split, kind, baseline, loss
        self.statistics = np.zeros((len(split.items), *kind.statistics_shape))
        self.calibrate, self.calibration = calibrate, np.zeros((len(split.items), len(SUMS), BINS))
        self.loss_sums = np.zeros(2)  # sum and divisor
        self.examples = example_rows(len(split))
        self.maps = np.zeros((len(self.examples), *split.labels.shape[1:]), np.float32)

    def add_scores(self, rows: np.ndarray, scores: Tensor) -> None:
        """Add a model's scores (n, ...) of windows ``rows``, and their loss."""
        if self.loss is not None:
            labels = torch.from_numpy(self.split.labels[rows]).to(scores.device)
            self.loss_sums += [float(self.loss.sum(scores, labels)), self.loss.count(labels)]
        predicted = self.kind.predict(scores).cpu().numpy()
        self._add(rows, predicted)
        if self.calibrate:
            self._compare(rows, predicted, self.kind.blendable(scores.float()).cpu().numpy())

    def add_votes(self, rows: np.ndarray, votes: Tensor, are_probabilities: bool = True) -> None:
        """Add averaged votes (n, K) or (n, K, S, S) for windows ``rows``, see TaskKind.votes."""
        predicted = self.kind.from_votes(votes).cpu().numpy()
        self._add(rows, predicted)
        if self.calibrate and are_probabilities:
            self._compare(rows, predicted, votes.cpu().numpy())

    def _add(self, rows: np.ndarray, predicted: np.ndarray) -> None:
        for row, prediction, labels in zip(rows.tolist(), predicted, self.split.labels[rows], strict=True):
            self.kind.accumulate(self.statistics[self.split.tile_of[row]], prediction, labels, self.baseline)
            self.maps[self.examples == row] = prediction

    def _compare(self, rows: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> None:
        windows = zip(rows.tolist(), predicted, probabilities, self.split.labels[rows], strict=True)
        for row, prediction, probability, labels in windows:
            found = self.kind.confidences(probability, prediction, labels)
            self.calibration[self.split.tile_of[row]] += calibration_sums(*found)

    @property
    def sums(self) -> np.ndarray:
        """Everything collected so far as a flat float64 array; the arrays of ranks can be added."""
        return np.concatenate([self.loss_sums, self.statistics.ravel(), self.calibration.ravel(), self.maps.ravel()])

    def finish(self, sums: np.ndarray | None = None) -> Evaluation:
        """Compute the scores from this collector's sums, or from the sums over all ranks."""
        parts = self.sums if sums is None else sums
        sizes = [self.loss_sums.size, self.statistics.size, self.calibration.size]
        loss, statistics, calibration, maps = np.split(parts, np.cumsum(sizes))
        statistics = statistics.reshape(self.statistics.shape).astype(self.kind.tile_type)
        calibration = calibration.reshape(self.calibration.shape)
        scores = self.kind.scores(statistics, self.baseline)
        values = scores.values | ({"loss": float(loss[0] / loss[1])} if loss[1] else {})
        maps = maps.reshape(self.maps.shape).astype(self.kind.label_type)
        if not calibration.any():
            return Evaluation(Scores(values, scores.by_output), statistics, maps)
        values["ECE"] = float(calibration_error(calibration.sum(0)))
        return Evaluation(Scores(values, scores.by_output), statistics, maps, calibration.astype(np.float32))


def example_rows(length: int) -> np.ndarray:
    """Return the windows shown as examples, evenly spread over a split of ``length`` windows."""
    return np.unique(np.linspace(0, length - 1, EXAMPLES + 2)[1:-1].round().astype(np.int64))
