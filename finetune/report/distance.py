"""Scores of test tiles by their distance to the nearest training tile, which neighborhoods shared by both raise."""

from dataclasses import dataclass

import numpy as np

from finetune.metrics.statistics import bootstrap_interval
from finetune.report.rows import Row, TaskReport

BINS = 4
FEWEST_PLACES = 3
"""Number of test places below which a bin is not drawn."""

LEGEND = (
    "Test tiles in {} groups of equal size, by the distance from their center to that of the nearest training tile; "
    "points are at the median of a group. Only the tiles whose position is known."
)


@dataclass(frozen=True)
class ByDistance:
    """A row's primary score in each bin.

    Attributes:
        points: median distance in km to three digits, and the mean score over seeds.
        intervals: 95 % interval of each score over draws of the bin's places.
    """

    points: list[tuple[float, float]]
    intervals: list[tuple[float, float]]


def score_by_distance(report: TaskReport, row: Row) -> ByDistance | None:
    """Return the scores of a row on all training tiles; None with fewer than two bins."""
    distance, places = row.run.distance_km, np.array(row.run.places)
    points, intervals = [], []
    for tiles in _bins(distance) if len(distance) == len(places) else ():
        runs = [result.statistics[tiles] for result in row.results]
        scores = [report.kind.scores(statistics, report.baseline).values.get(report.primary) for statistics in runs]
        defined = [score for score in scores if score is not None and np.isfinite(score)]
        if defined and len(set(places[tiles])) >= FEWEST_PLACES:
            points.append((float(f"{np.median(distance[tiles]):.3g}"), float(np.mean(defined))))
            intervals.append(bootstrap_interval(report.resampled, runs, places[tiles].tolist()))
    return ByDistance(points, intervals) if len(points) > 1 else None


def distance_legend() -> str:
    """Return the explanation of the chart."""
    return LEGEND.format(BINS)


def _bins(distance: np.ndarray) -> list[np.ndarray]:
    """Return the tiles of each bin; tiles of one distance are in one bin."""
    known = distance[np.isfinite(distance)]
    if not len(known):
        return []
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS))
    numbers = np.where(np.isfinite(distance), np.searchsorted(edges, distance), -1)
    return [np.flatnonzero(numbers == number) for number in range(len(edges) + 1)]
