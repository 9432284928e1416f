"""From predictions of a split's windows to what is kept of its tiles, and which epoch and rate to choose."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.data.datasets import LabeledSplit
from finetune.heads.heads import count_labels, predict, summed_loss
from finetune.metrics.scores import LOWER_IS_BETTER, PRIMARY, Scores, compute_scores, tile_confusion
from finetune.tasks import Task
from shards.order.random_bits import fold_in, permute, uniform

EXAMPLES = 6
"""Test windows whose predictions are kept as pictures."""


@dataclass(frozen=True)
class Evaluation:
    """A split's scores.

    Attributes:
        scores: by name, ``loss`` among the values.
        units: what is kept of every tile, see finetune/metrics/scores.py.
        maps: predictions for the windows of `example_rows`.
    """

    scores: Scores
    units: np.ndarray
    maps: np.ndarray


class Collector:
    """Takes predictions of a split in any order and from any rank; parts of ranks are added up.

    Args:
        baseline: regression: the training mean of each target.
    """

    def __init__(self, split: LabeledSplit, task: Task, baseline: np.ndarray | None) -> None:
        self.split, self.task, self.baseline = split, task, baseline
        tiles, outputs = len(split.items), len(task.outputs)
        kind = task.kind
        self.units = np.zeros((tiles, outputs, outputs) if kind == "segmentation" else (tiles, 2, outputs))
        self.loss = np.zeros(2)  # sum, and what it is divided by
        self.examples = example_rows(len(split))
        shape = split.labels.shape[1:] if kind == "segmentation" else (outputs,)
        self.maps = np.zeros((len(self.examples), *shape), np.float32)

    def add_scores(self, rows: np.ndarray, scores: Tensor) -> None:
        """A model's scores (n, ...) of windows ``rows``; the loss is taken along."""
        labels = torch.from_numpy(self.split.labels[rows]).to(scores.device)
        ignore = self.task.ignore_index
        self.loss += [
            float(summed_loss(self.task.kind, scores, labels, ignore)),
            count_labels(self.task.kind, labels, ignore),
        ]
        self.add(rows, predict(self.task.kind, scores).cpu().numpy())

    def add(self, rows: np.ndarray, predicted: np.ndarray) -> None:
        """Predictions of windows ``rows``: classes (n, S, S), probabilities or values (n, K)."""
        labels = self.split.labels[rows]
        for row, one, label in zip(rows.tolist(), predicted, labels, strict=True):
            tile = int(self.split.tile_of[row])
            if self.task.kind == "segmentation":
                self.units[tile] += tile_confusion(one, label, len(self.task.classes))
            else:
                self.units[tile] = one, label
            self.maps[self.examples == row] = one

    @property
    def sums(self) -> np.ndarray:
        """Everything that was collected, flat float64; those of ranks are added."""
        return np.concatenate([self.loss, self.units.ravel(), self.maps.ravel()])

    def finish(self, sums: np.ndarray | None = None) -> Evaluation:
        """Scores from this collector's, or from all ranks' sums."""
        parts = self.sums if sums is None else sums
        loss, units, maps = np.split(parts, [2, 2 + self.units.size])
        units = units.reshape(self.units.shape)
        units = units.astype(np.int32) if self.task.kind == "segmentation" else units.astype(np.float32)
        found = compute_scores(self.task.kind, units, self.baseline)
        values = found.values | ({"loss": float(loss[0] / loss[1])} if loss[1] else {})
        maps = maps.reshape(self.maps.shape)
        maps = maps.astype(np.int16) if self.task.kind == "segmentation" else maps.astype(np.float32)
        return Evaluation(Scores(values, found.by_output), units, maps)


def example_rows(length: int) -> np.ndarray:
    """Windows that are drawn, spread over a split of ``length`` windows."""
    return np.unique(np.linspace(0, length - 1, EXAMPLES + 2)[1:-1].round().astype(np.int64))


def is_better(task: Task, select: str, new: Scores, old: Scores | None) -> bool:
    """Whether validation scores are better than those so far, by the task's primary score or by the loss.

    Those of a head that diverged never are: an argmax of NaN is a class, too, so all scores must be finite.
    """
    if not new.are_finite:
        return False
    if old is None or not old.are_finite:
        return True
    name = "loss" if select == "loss" else PRIMARY[task.kind]
    one, two = new.values.get(name), old.values.get(name)
    if one is None or two is None:  # undefined
        return one is not None
    return one < two if name in LOWER_IS_BETTER else one > two


def epoch_order(length: int, batch: int, seed: int, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of an epoch as (place in the rows, view 0..7 draw), each in an order drawn from seed and epoch; the last
    batch is filled up from the epoch's beginning, so that all are of one size."""
    steps = -(-length // batch)
    places = permute(fold_in(seed, "finetune", epoch), length, np.arange(steps * batch) % length)
    draws = (uniform(fold_in(seed, "view", epoch), np.arange(steps * batch), 1)[:, 0] * 8).astype(np.int64)
    return [(places[begin : begin + batch], draws[begin : begin + batch]) for begin in range(0, steps * batch, batch)]


def subset_rows(split: LabeledSplit, fraction: float, seed: int) -> np.ndarray:
    """Windows of a share of the tiles; a smaller share's are among a larger one's, and at least one tile is taken."""
    tiles = len(split.items)
    order = permute(fold_in(seed, "fraction"), tiles, np.arange(tiles))
    chosen = order[: max(1, round(fraction * tiles))]
    return np.flatnonzero(np.isin(split.tile_of, chosen))
