"""Results of many runs, put together: seeds of the same training become one row of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.metrics import LOWER_IS_BETTER, PRIMARY, compute_scores
from finetune.results import Result, RunResults, read_results
from finetune.statistics import bootstrap_interval, holm, paired_test, smallest_p
from finetune.tasks import Task
from shards.errors import ConfigError


@dataclass
class Row:
    """One way of training on one task, with all its seeds.

    Attributes:
        label: of the encoder.
        identity: SHA-256 of its weights, ``random`` of untrained ones.
        results: by seed, ascending.
        interval: 95 % of the primary score.
        p: of the paired test against the untrained twin, corrected; None without one, or of the twin itself.
    """

    label: str
    identity: str
    architecture: str
    protocol: str
    head: str
    fraction: float
    results: list[Result]
    interval: tuple[float, float] = (0.0, 0.0)
    p: float | None = None
    is_better: bool = False

    @property
    def name(self) -> str:
        """Without the encoder."""
        return f"{self.protocol}, {self.head}" if self.head != self.protocol else self.protocol

    def values(self, metric: str) -> list[float]:
        """Test scores of the seeds."""
        return [one.test[metric] for one in self.results if metric in one.test]

    def mean(self, metric: str) -> float:
        return float(np.mean(self.values(metric)))

    def deviation(self, metric: str) -> float:
        """Sample standard deviation over seeds; 0 of a single one."""
        values = self.values(metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def by_output(self, metric: str) -> list[float | None]:
        """Mean over seeds for each class or target; None where it occurs in none."""
        columns = zip(*(one.by_output[metric] for one in self.results), strict=True)
        there = [[value for value in column if value is not None] for column in columns]
        return [float(np.mean(values)) if values else None for values in there]


@dataclass
class TaskReport:
    """All rows of a task.

    Attributes:
        run: one of the runs, for what they have in common.
        costs: seconds by part, of each run folder.
    """

    task: Task
    run: RunResults
    rows: list[Row] = field(default_factory=list)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        return PRIMARY[self.task.kind]

    @property
    def whole(self) -> list[Row]:
        """Rows of all training tiles."""
        return [row for row in self.rows if row.fraction == 1.0]

    def best(self) -> Row:
        """The row with the best mean primary score."""
        rows = self.whole or self.rows
        sign = 1 if self.primary in LOWER_IS_BETTER else -1
        return min(rows, key=lambda row: sign * row.mean(self.primary))

    @property
    def smallest_p(self) -> float:
        return smallest_p(self.run.places)

    def without_seen(self, row: Row) -> list[float]:
        """Primary score of each seed on the test tiles whose scene was not pretrained on."""
        unseen = ~np.asarray(self.run.seen, bool)
        return [
            compute_scores(self.task.kind, one.units[unseen], self.baseline).values[self.primary] for one in row.results
        ]

    @property
    def baseline(self) -> np.ndarray | None:
        return None if self.run.baseline is None else np.asarray(self.run.baseline)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Folders with results, below the given ones.

    Raises:
        ConfigError: there are none below one of them.
    """
    found: list[Path] = []
    for folder in folders:
        below = sorted(path.parent for path in folder.rglob("results.json"))
        if not below:
            raise ConfigError(f"{folder}: no results.json here or below: evaluations write it when they are complete")
        found += [path for path in below if path not in found]
    return found


def collect(folders: Sequence[Path]) -> list[TaskReport]:
    """Read runs and put seeds together; tasks by name.

    Raises:
        ConfigError: damaged results, runs of a task on other test tiles, or a seed twice.
    """
    reports: dict[str, TaskReport] = {}
    rows: dict[tuple, Row] = {}
    origins: dict[tuple, Path] = {}
    for folder in folders:
        run = read_results(folder)
        report = reports.setdefault(run.task.name, TaskReport(run.task, run))
        if (run.task, run.tiles) != (report.task, report.run.tiles):
            raise ConfigError(f"{folder}: task {run.task.name} has other classes or test tiles than in the other runs")
        report.costs[str(folder)] = run.cost
        for result in run.results:
            told = run.encoders[result.encoder]
            key = (run.task.name, told["sha256"], told["architecture"], result.protocol, result.head, result.fraction)
            if (*key, result.seed) in origins:
                other = origins[(*key, result.seed)]
                raise ConfigError(
                    f"{folder} and {other}: both have seed {result.seed} of {told['name']}, {result.protocol} on "
                    f"{run.task.name}: leave one out"
                )
            origins[(*key, result.seed)] = folder
            if key not in rows:
                rows[key] = Row(told["name"], *key[1:], results=[])
                report.rows.append(rows[key])
            rows[key].results.append(result)
    for row in rows.values():
        row.results.sort(key=lambda one: one.seed)
    _judge(list(reports.values()))
    return [reports[name] for name in sorted(reports)]


def _judge(reports: list[TaskReport]) -> None:
    """Intervals of all rows, and the tests against untrained twins, corrected over all tasks."""
    tested: list[tuple[TaskReport, Row]] = []
    for report in reports:
        kind, places, baseline = report.task.kind, report.run.places, report.baseline
        twins = {(row.architecture, row.name, row.fraction): row for row in report.rows if row.identity == "random"}
        for row in report.rows:
            units = [one.units for one in row.results]
            row.interval = bootstrap_interval(kind, units, places, baseline)
            twin = twins.get((row.architecture, row.name, row.fraction))
            if row.identity == "random" or twin is None:
                continue
            common = {one.seed for one in row.results} & {one.seed for one in twin.results}
            mine, others = ([one.units for one in some.results if one.seed in common] for some in (row, twin))
            if common:
                row.p = paired_test(kind, mine, others, places, baseline)
                sign = -1 if report.primary in LOWER_IS_BETTER else 1
                row.is_better = sign * (row.mean(report.primary) - twin.mean(report.primary)) > 0
                tested.append((report, row))
    for (_, row), p in zip(tested, holm([row.p or 1.0 for _, row in tested]), strict=True):
        row.p = p
        row.is_better = row.is_better and p < 0.05
