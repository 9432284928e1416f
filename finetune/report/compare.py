"""Intervals of all rows, and paired tests of encoders against their random-init baselines, against baselines without an
encoder, and between rows."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from finetune.evaluation.runs import BASELINE
from finetune.metrics.metric import lower_is_better
from finetune.metrics.statistics import bootstrap_scores, draws_for, holm, paired_test
from finetune.report.rows import Comparison, Row, TaskReport

Pair = tuple[TaskReport, Row, Row]
SIGNIFICANT = 0.05


def judge(reports: Sequence[TaskReport]) -> None:
    """Compute intervals and tests of all rows.

    Tests against random-init baselines are corrected jointly over all tasks, and so are those against baselines without
    an encoder, and those between other rows.
    """
    against_random: list[Pair] = []
    against_spectra: list[Pair] = []
    between: list[Pair] = []
    for report in reports:
        for row in report.rows:
            statistics = [result.statistics for result in row.results]
            row.draws = bootstrap_scores(report.resampled, statistics, report.run.places)
            baseline = _random_init(row, report)
            if baseline is not None:
                against_random.append((report, row, baseline))
        against_spectra += [(report, *pair) for pair in _best_pairs(report)]
        between += [(report, *pair) for pair in _pairs(report.rows)]
    for (report, row, baseline), p in zip(against_random, corrected_p(against_random), strict=True):
        row.p = p
        sign = -1 if lower_is_better(report.primary) else 1
        row.is_better = sign * (row.mean(report.primary) - baseline.mean(report.primary)) > 0 and p < SIGNIFICANT
    for (report, first, second), p in zip(against_spectra, corrected_p(against_spectra), strict=True):
        report.against_baselines.append(Comparison(first, second, report.primary, p))
    for (report, first, second), p in zip(between, corrected_p(between), strict=True):
        report.comparisons.append(Comparison(first, second, report.primary, p))


def _best_pairs(report: TaskReport) -> list[tuple[Row, Row]]:
    """Return the row of each encoder that is best on the validation tiles, with the baseline without an encoder that is
    best on the test tiles, for each portion of the training tiles."""
    pairs = []
    for portion in dict.fromkeys(row.portion for row in report.rows):
        rows = [row for row in report.rows if row.portion == portion]
        baselines = report.ranked([row for row in rows if row.is_baseline])
        trained = [row for row in rows if not (row.is_baseline or row.is_random_init)]
        best = {row.label: row for row in reversed(report.ranked_by_validation(trained))}
        pairs += [(row, baselines[0]) for row in best.values() if baselines]
    return pairs


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return pairs of trained rows with the same protocol and portion of tiles: one encoder in two settings, two
    encoders in one setting, or two encoders in their own settings if they have none in common."""
    trained = [row for row in rows if not row.is_random_init and row.protocol != BASELINE]
    pairs = [
        (first, second)
        for first, second in combinations(trained, 2)
        if (first.protocol, first.portion) == (second.protocol, second.portion)
    ]
    alike = {_of_encoders(*pair) for pair in pairs if pair[0].name == pair[1].name}
    return [
        (first, second)
        for first, second in pairs
        if first.label == second.label or first.name == second.name or _of_encoders(first, second) not in alike
    ]


def _of_encoders(first: Row, second: Row) -> tuple:
    return first.protocol, first.portion, frozenset((first.label, second.label))


def corrected_p(pairs: Sequence[Pair]) -> list[float]:
    """Return the p-value of the paired test of each pair, corrected by Holm for all of them."""
    draws = draws_for(len(pairs))
    return holm([_p(*pair, draws) for pair in pairs])


def _p(report: TaskReport, first: Row, second: Row, draws: int) -> float:
    of_first, of_second = _paired(first, second)
    return paired_test(report.resampled, of_first, of_second, report.run.places, draws)


def _paired(first: Row, second: Row) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the statistics of the shared seeds, or of all seeds in order if none are shared."""
    of_first, of_second = ({result.seed: result.statistics for result in row.results} for row in (first, second))
    common = sorted(of_first.keys() & of_second.keys())
    if common:
        return [of_first[seed] for seed in common], [of_second[seed] for seed in common]
    pairs = list(zip(of_first.values(), of_second.values(), strict=False))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _random_init(row: Row, report: TaskReport) -> Row | None:
    """Return the row of the random-init baseline in the same setting, preferably from the same run."""
    if row.is_random_init:
        return None
    baselines = [
        candidate
        for candidate in report.rows
        if candidate.is_random_init
        and (candidate.architecture, candidate.way, candidate.portion) == (row.architecture, row.way, row.portion)
        and _shared(candidate) == _shared(row)
    ]
    same_run = [candidate for candidate in baselines if candidate.folder == row.folder]
    return next(iter(same_run or baselines), None)


def _shared(row: Row) -> dict:
    """Return the settings that a row shares with its random-init baseline."""
    excluded = {"run", "seed of the weights"}
    return {key: value for key, value in row.settings.items() if key not in excluded}
