"""Intervals of all rows, and paired tests: of an encoder against its untrained twin, and of any two rows."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from finetune.metrics.scores import LOWER_IS_BETTER
from finetune.metrics.statistics import bootstrap_interval, draws_for, holm, paired_test
from finetune.report.rows import Comparison, Row, TaskReport

Pair = tuple[TaskReport, Row, Row]
SIGNIFICANT = 0.05


def judge(reports: Sequence[TaskReport]) -> None:
    """Intervals and tests of all rows. Tests against twins are corrected together over all tasks, those between other
    rows as well."""
    against_twins: list[Pair] = []
    between: list[Pair] = []
    for report in reports:
        for row in report.rows:
            units = [one.units for one in row.results]
            row.interval = bootstrap_interval(report.task.kind, units, report.run.places, report.baseline)
            twin = _twin(row, report)
            if twin is not None:
                against_twins.append((report, row, twin))
        between += [(report, *pair) for pair in _pairs(report.rows)]
    for (report, row, twin), p in zip(against_twins, _tested(against_twins), strict=True):
        row.p = p
        sign = -1 if report.primary in LOWER_IS_BETTER else 1
        row.is_better = sign * (row.mean(report.primary) - twin.mean(report.primary)) > 0 and p < SIGNIFICANT
    for (report, one, two), p in zip(between, _tested(between), strict=True):
        difference = one.mean(report.primary) - two.mean(report.primary)
        report.comparisons.append(Comparison(one, two, difference, p))


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Trained rows of one protocol and share of the tiles, two by two: one encoder in two settings, two encoders in one
    setting, and where two encoders have none in common, in those that they have."""
    trained = [row for row in rows if not row.is_untrained]
    pairs = [
        (one, two)
        for one, two in combinations(trained, 2)
        if (one.protocol, one.fraction) == (two.protocol, two.fraction)
    ]
    alike = {_of_encoders(*pair) for pair in pairs if pair[0].name == pair[1].name}
    return [
        (one, two)
        for one, two in pairs
        if one.label == two.label or one.name == two.name or _of_encoders(one, two) not in alike
    ]


def _of_encoders(one: Row, two: Row) -> tuple:
    return one.protocol, one.fraction, frozenset((one.label, two.label))


def _tested(pairs: Sequence[Pair]) -> list[float]:
    """Corrected p-values."""
    draws = draws_for(len(pairs))
    return holm([_p(*pair, draws) for pair in pairs])


def _p(report: TaskReport, one: Row, two: Row, draws: int) -> float:
    first, second = _paired(one, two)
    return paired_test(report.task.kind, first, second, report.run.places, report.baseline, draws)


def _paired(one: Row, two: Row) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Units of the seeds that both have, or in order where they share none."""
    mine, theirs = ({result.seed: result.units for result in row.results} for row in (one, two))
    common = sorted(mine.keys() & theirs.keys())
    if common:
        return [mine[seed] for seed in common], [theirs[seed] for seed in common]
    pairs = list(zip(mine.values(), theirs.values(), strict=False))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _twin(row: Row, report: TaskReport) -> Row | None:
    """The same network untrained, in the same setting; of several, that of the same run."""
    if row.is_untrained:
        return None
    found = [
        other
        for other in report.rows
        if other.is_untrained
        and (other.architecture, other.way, other.fraction) == (row.architecture, row.way, row.fraction)
        and _shared(other) == _shared(row)
    ]
    folders = [other for other in found if other.folder == row.folder]
    return next(iter(folders or found), None)


def _shared(row: Row) -> dict:
    """Settings that a twin has, too."""
    own = {"run", "seed of the weights"}
    return {key: value for key, value in row.settings.items() if key not in own}
