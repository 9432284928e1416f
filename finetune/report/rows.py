"""Rows and tasks of a report: results that differ only in the seed, on one set of test tiles and labels."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluation.portion import Portion
from finetune.evaluation.provenance import REPLACEMENTS
from finetune.evaluation.results import Provenance, Result, RunResults
from finetune.metrics.metric import lower_is_better
from finetune.metrics.statistics import interval, smallest_p
from finetune.tasks import Task
from finetune.tasks.kinds.kind import TaskKind, kind_of


@dataclass
class Row:
    """One training setup on one task, with all its seeds.

    Attributes:
        label: label of the encoder, unique to it.
        identity: SHA-256 of its weights.
        is_random_init: whether it has the initial weights of pretraining.
        settings: everything else that its results depend on, by name.
        rest: the ``settings`` that distinguish it from other rows, as text.
        run, folder: origin of its first result.
        results: results by seed, ascending.
        draws: the primary score for draws of test places (draws,).
        p: corrected p-value of the paired test against the random-init baseline; None without a baseline, or for the
            baseline itself.
    """

    label: str
    identity: str
    is_random_init: bool
    architecture: str
    protocol: str
    head: str
    portion: Portion
    settings: Provenance
    run: RunResults
    folder: Path
    results: list[Result]
    rest: str = ""
    draws: np.ndarray = field(default_factory=lambda: np.zeros(1))
    p: float | None = None
    is_better: bool = False

    @property
    def encoder(self) -> dict[str, Any]:
        """The record of the encoder in the results."""
        return self.run.encoders[self.results[0].encoder]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the primary score."""
        return interval(self.draws)

    @property
    def is_baseline(self) -> bool:
        """Whether spectra take the place of an encoder."""
        return self.architecture in REPLACEMENTS.values()

    @property
    def way(self) -> str:
        """Protocol and head."""
        return f"{self.protocol}, {self.head}" if self.head != self.protocol else self.protocol

    @property
    def name(self) -> str:
        """Name without the encoder and the portion of the tiles."""
        return f"{self.way}{self.rest}"

    def values(self, metric: str) -> list[float]:
        """Return the test scores of the seeds, leaving out undefined ones."""
        return [result.test[metric] for result in self.results if metric in result.test]

    def mean(self, metric: str) -> float:
        """Return the mean over seeds; NaN if the score is undefined or non-finite."""
        values = self.values(metric)
        return float(np.mean(values)) if values else float("nan")

    def validation(self, metric: str) -> float:
        """Return the mean over seeds of a score of the validation tiles; NaN if it is undefined."""
        values = [result.validation[metric] for result in self.results if metric in result.validation]
        return float(np.mean(values)) if values else float("nan")

    def deviation(self, metric: str) -> float:
        """Return the sample standard deviation over seeds; 0 for a single seed."""
        values = self.values(metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def by_output(self, metric: str) -> list[float | None]:
        """Return the mean over seeds for each class or target; None if it occurs with no seed."""
        columns = zip(*(result.by_output[metric] for result in self.results), strict=True)
        defined = [[value for value in column if value is not None] for column in columns]
        means = [float(np.mean(values)) if values else None for values in defined]
        return [None if mean is None or not np.isfinite(mean) else mean for mean in means]


@dataclass
class Comparison:
    """Two rows of one task, tested on the same tiles.

    Attributes:
        metric: name of the primary score.
        p: corrected p-value of the paired test.
    """

    first: Row
    second: Row
    metric: str
    p: float

    @property
    def difference(self) -> float:
        """The difference of the mean primary scores, first minus second."""
        return self.first.mean(self.metric) - self.second.mean(self.metric)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, by draws of test places that both rows share."""
        return interval(self.first.draws - self.second.draws)


@dataclass
class TaskReport:
    """All rows of a task on one set of test tiles and labels.

    Attributes:
        title: unique title.
        run: one of the runs, for the fields that all runs share.
        against_baselines: a row of each encoder and the best row without an encoder.
        costs: seconds by part, for each run folder.
    """

    task: Task
    run: RunResults
    title: str = ""
    rows: list[Row] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    against_baselines: list[Comparison] = field(default_factory=list)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    @cached_property
    def kind(self) -> TaskKind:
        """The kind of the task."""
        return kind_of(self.task)

    @property
    def primary(self) -> str:
        """The score by which rows are compared."""
        return self.kind.primary

    def resampled(self, statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the primary score of resampled sets of test tiles, see TaskKind.resampled."""
        return self.kind.resampled(statistics, weights, self.baseline)

    @property
    def on_all_tiles(self) -> list[Row]:
        """Rows trained on all training tiles."""
        return [row for row in self.rows if row.portion.is_all]

    def ranked(self, rows: list[Row]) -> list[Row]:
        """Sort rows by their mean primary score, the best first and undefined ones last."""
        sign = 1 if lower_is_better(self.primary) else -1
        means = {id(row): sign * row.mean(self.primary) for row in rows}
        return sorted(rows, key=lambda row: (not np.isfinite(means[id(row)]), means[id(row)]))

    def ranked_by_validation(self, rows: list[Row]) -> list[Row]:
        """Sort rows by their mean primary score on the validation tiles, the best first and undefined ones last."""
        sign = 1 if lower_is_better(self.primary) else -1
        means = {id(row): sign * row.validation(self.primary) for row in rows}
        return sorted(rows, key=lambda row: (not np.isfinite(means[id(row)]), means[id(row)]))

    def best(self) -> Row:
        """Return the row with the best mean primary score."""
        return self.ranked(self.on_all_tiles or self.rows)[0]

    @property
    def smallest_p(self) -> float:
        return smallest_p(self.run.places)

    def without_seen(self, row: Row) -> list[float]:
        """Return the primary score of each seed, if defined, on test tiles whose scenes were not pretrained on."""
        unseen = ~np.asarray(row.run.seen, bool)
        scores = [self.kind.scores(result.statistics[unseen], self.baseline) for result in row.results]
        return [score.values[self.primary] for score in scores if self.primary in score.values]

    @property
    def baseline(self) -> np.ndarray | None:
        return None if self.run.baseline is None else np.asarray(self.run.baseline)
