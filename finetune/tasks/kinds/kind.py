"""What a kind of task is: how its labels are encoded, how outputs become predictions, scores, maps and pictures.

A kind is a class; an object of it is a kind with one task. Heads and losses are chosen by `features` and `form`, so a
new kind takes those that there are. To add a kind, subclass `TaskKind` (or `ClassKind`, `TargetKind`) and register it::

    @TASK_KINDS.register("counting")
    class Counting(TargetKind): ...
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from finetune.metrics.scores import Scores
from finetune.tasks import Task
from finetune.tasks.registry import TASK_KINDS

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["class", "classes", "value"]
"""One class index, a multi-hot vector of classes, or numbers: what a loss compares scores with."""


@dataclass(frozen=True)
class LabelSummary:
    """What a training needs to know of its labels as a whole.

    Attributes:
        counts: labels of each class (C,); None for targets.
        mean, std: of each target (T,); None for classes.
    """

    counts: np.ndarray | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None


class TaskKind(ABC):
    """A kind of task, bound to one task.

    Args:
        task: names the K outputs: C classes or T targets.

    Attributes:
        config: options that the task file sets, typed as registered.
        features: what a head gets from the encoder: ``map`` (B, D, g, g), or ``pooled`` (B, D).
        form: what labels are, see `Form`.
        outputs_are: key of the task file that lists the outputs.
        labels_from: where labels are read, a name in `finetune.data.layouts.LABEL_SOURCES`.
        published_heads: the head of SpectralEarth's recipe for a ViT, and for a ResNet.
        loss: default of the config key ``loss``.
        standardize: whether heads learn targets as (value - mean) / std of the training labels.
        metrics: names of the scores in tables; runs are compared, and models chosen, by the first.
        by_output: the score that the report draws for each output, and its title.
        label_type: dtype of encoded labels and of stored predictions.
        tile_type: dtype of per-tile statistics.
        splits_by_place: whether no place is in two published splits.
        map: what `predict` writes: the ``classes`` of cells, or a band of ``values`` for each output.
        label_unit: what labels are counted in.
    """

    features: ClassVar[Literal["map", "pooled"]]
    form: ClassVar[Form]
    outputs_are: ClassVar[Literal["classes", "targets"]]
    labels_from: ClassVar[str] = "rasters"
    published_heads: ClassVar[tuple[str, str]]
    loss: ClassVar[str]
    standardize: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]]
    by_output: ClassVar[tuple[str, str]]
    label_type: ClassVar[type[np.generic]] = np.float32
    tile_type: ClassVar[type[np.generic]] = np.float32
    splits_by_place: ClassVar[bool] = True
    map: ClassVar[Literal["classes", "values"]] = "values"
    label_unit: ClassVar[str] = "tiles"

    def __init__(self, task: Task) -> None:
        self.task, self.config = task, task.kind
        self.outputs = len(task.outputs)

    @classmethod
    def check(cls, task: Task) -> None:
        """Raise ValueError if a task file lacks what the kind needs."""
        excluded = "classes" if cls.outputs_are == "targets" else "targets"
        if not getattr(task, cls.outputs_are) or getattr(task, excluded):
            raise ValueError(f".kind {task.kind.name} needs .{cls.outputs_are} and no .{excluded}")

    @property
    def is_dense(self) -> bool:
        """Whether every pixel has a label; otherwise a tile has one."""
        return self.features == "map"

    @property
    def primary(self) -> str:
        """The score by which runs are compared."""
        return self.metrics[0]

    # ---- labels ----

    @property
    @abstractmethod
    def fill(self) -> float:
        """The value of an encoded label that does not count."""

    @abstractmethod
    def encode(self, raw: np.ndarray) -> np.ndarray | None:
        """Encode a tile's label, as its source reads it, for training; None leaves the tile out."""

    def find_problem(self, raw: np.ndarray) -> str | None:
        """Describe what is wrong with a label, or return None."""
        return None

    @abstractmethod
    def tally(self, labels: np.ndarray | None) -> np.ndarray:
        """Count the encoded labels (n, ...) of tiles; tallies add up. None is one tile that is left out."""

    @abstractmethod
    def known(self, tally: np.ndarray) -> np.ndarray:
        """Return of which outputs a tally has any label, bool (K,)."""

    @abstractmethod
    def describe_tallies(self, tallies: list[np.ndarray]) -> list[list[str]]:
        """Return rows for a table: a name, and a cell for each split's tally."""

    @abstractmethod
    def summarize(self, labels: np.ndarray) -> LabelSummary:
        """Summarize the encoded labels (n, ...) of training windows."""

    # ---- predictions ----

    @abstractmethod
    def predict(self, scores: "Tensor") -> "Tensor":
        """Turn a head's scores (B, K) or (B, K, S, S) into predictions of the shape of labels."""

    @abstractmethod
    def blendable(self, scores: "Tensor") -> "Tensor":
        """Turn scores into what overlapping windows of a map are averaged in: float32 of the shape of scores."""

    @abstractmethod
    def votes(self, labels: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Turn labels into what neighbors vote for.

        Args:
            labels: encoded, (n, ...).
            grid: positions per side of the feature map; 1 for pooled features.

        Returns:
            float32 (n, K), or (n, grid, grid, K) of a dense kind, and which of them count: bool without the last axis.
        """

    def from_votes(self, votes: "Tensor") -> "Tensor":
        """Turn averaged votes (B, K), or (B, K, S, S), into predictions."""
        return votes

    def confidences(
        self, probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return how probable the predictions of one window are, and whether they are right, where a label counts.

        Args:
            probabilities: what `blendable` returns of the window, or what its neighbors vote for, (K,) or (K, S, S).

        Returns:
            Probabilities (n,) and bool (n,); both are empty for outputs that have no probabilities.
        """
        return np.zeros(0), np.zeros(0, bool)

    # ---- scores ----

    @property
    @abstractmethod
    def statistics_shape(self) -> tuple[int, ...]:
        """Shape of the statistics that are kept of every test tile."""

    @abstractmethod
    def accumulate(
        self, statistics: np.ndarray, predicted: np.ndarray, labels: np.ndarray, baseline: np.ndarray | None
    ) -> None:
        """Add a window's predictions to the statistics of its tile, in place; they begin as zeros."""

    @abstractmethod
    def scores(self, statistics: np.ndarray, baseline: np.ndarray | None = None) -> Scores:
        """Compute all scores of a set of tiles.

        Args:
            statistics: (n, *statistics_shape).
            baseline: the training mean of each target (T,).
        """

    @abstractmethod
    def resampled(self, statistics: np.ndarray, weights: np.ndarray, baseline: np.ndarray | None = None) -> np.ndarray:
        """Compute the primary score of resampled sets of tiles, float64 (draws,); NaN where it is undefined.

        Args:
            weights: (draws, n), how often each tile is in a set.
        """

    # ---- report ----

    def confusion(self, statistics: np.ndarray) -> np.ndarray | None:
        """Return the confusion matrix (C, C) of a set of tiles, labels in rows; None draws none."""
        return None

    def tables(self, statistics: list[np.ndarray]) -> list[tuple[str, list[list[str]]]]:
        """Return further tables for the report: a heading, and rows of text of which the first is the head.

        Args:
            statistics: of the best model, for each seed.
        """
        return []

    def picture(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Draw one window's labels or predictions as uint8 (S, S, 3); None draws no pictures.

        Args:
            labels: of the same window, for a scale that both share.
        """
        return None

    def legend(self) -> list[tuple[str, str]]:
        """Return names and colors for what `picture` draws."""
        return []


def kind_of(task: Task) -> TaskKind:
    """Return the kind of a task, bound to it."""
    return TASK_KINDS[task.kind.name](task)
