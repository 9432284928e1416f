"""Calibration of the rows of a task: the expected calibration error, and the points of the reliability diagram."""

from functools import partial

import numpy as np

from finetune.metrics.calibration import BINS, resampled_error
from finetune.metrics.statistics import bootstrap_interval
from finetune.report.rows import Row, TaskReport
from finetune.report.tables import number, spread, title

ECE = "ECE"
MOST_DRAWN = 4
"""Maximum number of rows in the diagram, the best ones."""

LEGEND = (
    f"ECE: expected calibration error in percent, the mean distance between confidence and accuracy over {BINS} bins "
    "of the confidence, weighted by their predictions (lower is better). {}Resampling adds noise, so that an ECE close "
    "to 0 can be below its interval. Rows without probabilities have none."
)
LABELS = "Confidence is the probability of the predicted class, and accuracy how often it is right. "
MULTILABEL = "Confidence is the probability that a class occurs, and accuracy how often it does, over all classes. "

Interval = tuple[float, float]


def calibration_table(report: TaskReport) -> list[list[str]]:
    """Return head and rows of the table; only the head if no row has probabilities."""
    lines = [["checkpoint", "protocol", "tiles", title(ECE)]]
    for row in calibrated(report.rows):
        runs = [result.calibration for result in row.results]
        low, high = (number(bound, ECE) for bound in bootstrap_interval(resampled_error, runs, row.run.places))
        share = row.portion.name
        lines.append([row.label, row.name, share, f"{spread(row, ECE)} [{low}, {high}]"])
    return lines


def calibration_legend(report: TaskReport) -> str:
    """Return the explanation of the table."""
    return LEGEND.format(MULTILABEL if report.kind.form == "classes" else LABELS)


def calibrated(rows: list[Row]) -> list[Row]:
    """Return the rows whose results all have probabilities."""
    return [row for row in rows if all(result.calibration.size for result in row.results)]


def reliability(row: Row) -> tuple[list[tuple[float, float]], list[Interval]]:
    """Return the mean confidence and accuracy of each bin with predictions of any seed, and the 95 % interval of the
    accuracy over draws of test places."""
    sums = np.stack([result.calibration for result in row.results]).sum(0, dtype=np.float64)
    count, confidence, hits = sums.sum(0)
    filled = np.flatnonzero(count).tolist()
    points = [(confidence[at] / count[at], hits[at] / count[at]) for at in filled]
    intervals = [bootstrap_interval(partial(_accuracy, at=at), [sums], row.run.places) for at in filled]
    return points, intervals


def _accuracy(sums: np.ndarray, weights: np.ndarray, at: int) -> np.ndarray:
    """Return the accuracy in a bin for each weighted set of tiles (draws,); NaN without predictions."""
    count, hits = weights @ sums[:, 0, at], weights @ sums[:, 2, at]
    return np.where(count > 0, hits / np.maximum(count, 1), np.nan)
