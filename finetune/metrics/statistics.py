"""How sure a score is: bootstrap intervals over test places, and a paired test of two models on the same places.

Tiles of one place are not independent, so places are drawn, not tiles. Scores that are no means over tiles (mIoU, mAP)
are computed anew from every draw; what they are made of is added up over places first where it adds up.
"""

from collections.abc import Sequence

import numpy as np

from finetune.tasks import Kind

DRAWS = 1000
MOST_DRAWS = 10_000
AT_ONCE = 500
"""Exchanges that are held in memory at a time."""

Runs = Sequence[np.ndarray]
"""Units (n, ...) of one model trained with several seeds, on the same tiles; see finetune/metrics/scores.py."""


def bootstrap_interval(
    kind: Kind, runs: Runs, places: Sequence[str], baseline: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the task's primary score, mean over seeds, from draws of test places with replacement; draws
    for which the score is undefined are left out, and without any other both ends are NaN.

    Args:
        places: the place of each tile.
        baseline: regression: the training mean of each target.
    """
    numbers = _numbers(places)
    count = int(numbers.max()) + 1
    drawn = np.random.default_rng(seed).integers(0, count, (draws, count))
    weights = np.stack([np.bincount(one, minlength=count) for one in drawn])
    values = np.mean([weighted_scores(kind, units, weights[:, numbers], baseline) for units in runs], axis=0)
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def paired_test(
    kind: Kind,
    first: Runs,
    second: Runs,
    places: Sequence[str],
    baseline: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the difference of two models' primary scores: at random places, predictions are exchanged.

    Seeds are paired in order. With n places there are 2^n exchanges, so few places can't give a small p.
    """
    numbers = _numbers(places)
    random, count = np.random.default_rng(seed), int(numbers.max()) + 1
    observed = abs(_differences(kind, first, second, np.zeros((1, len(numbers)), bool), baseline)[0])
    if not np.isfinite(observed):  # an undefined score shows nothing
        return 1.0
    as_large = 0
    for begin in range(0, draws, AT_ONCE):
        coins = random.random((min(AT_ONCE, draws - begin), count)) < 0.5
        others = np.abs(_differences(kind, first, second, coins[:, numbers], baseline))
        as_large += int((others >= observed - 1e-12).sum())
    return (1 + as_large) / (1 + draws)


def _differences(kind: Kind, first: Runs, second: Runs, coins: np.ndarray, baseline: np.ndarray | None) -> np.ndarray:
    """Sum over seeds of the score of the first model minus that of the second, (draws,), where predictions for the
    tiles with ``coins`` (draws, n) are exchanged."""
    found = np.zeros(len(coins))
    kept, exchanged = np.hstack([~coins, coins]).astype(float), np.hstack([coins, ~coins]).astype(float)
    for one, two in zip(first, second, strict=True):
        both = np.concatenate([one, two])
        found += weighted_scores(kind, both, kept, baseline) - weighted_scores(kind, both, exchanged, baseline)
    return found


def smallest_p(places: Sequence[str], draws: int = DRAWS) -> float:
    """The smallest p-value that `paired_test` can give with so many places, but for luck of the draw."""
    return max(2.0 ** (1 - len(set(places))), 1 / (1 + draws))


def draws_for(comparisons: int) -> int:
    """Exchanges of each of so many tests, so that Holm's correction leaves a clear difference a p well below 0.05."""
    return min(max(DRAWS, 50 * comparisons), MOST_DRAWS)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given."""
    order = np.argsort(p_values)
    corrected, largest = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()


def weighted_scores(kind: Kind, units: np.ndarray, weights: np.ndarray, baseline: np.ndarray | None) -> np.ndarray:
    """The primary score (PRIMARY) of each set of tiles, (draws,); NaN where it is undefined.

    Args:
        units: (n, ...).
        weights: (draws, n), how often each tile is in a set.
    """
    if kind == "segmentation":
        return _mean_iou((weights @ units.reshape(len(units), -1)).reshape(len(weights), *units.shape[1:]))
    if kind == "regression":
        assert baseline is not None
        error, reference = (units[:, 0] - units[:, 1]) ** 2, (units[:, 1] - baseline) ** 2
        return ((weights @ error) / np.maximum(weights @ reference, 1e-12)).mean(1)
    columns = (units[:, :, output] for output in range(units.shape[2]))
    return _mean_of_defined(np.stack([_precisions(one[:, 0], one[:, 1], weights) for one in columns]))


def _mean_iou(confusions: np.ndarray) -> np.ndarray:
    """Of confusion matrices (draws, C, C), over the classes that occur."""
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    union = confusions.sum(1) + confusions.sum(2) - hits
    return _mean_of_defined(np.where(union > 0, hits / np.maximum(union, 1e-12), np.nan).T)


def _precisions(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of one class, as finetune.metrics.scores.average_precision, of each weighted set of tiles."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal probabilities
    weighted = weights[:, order].astype(float)
    claimed = np.cumsum(weighted, axis=1)[:, last]
    hits = np.cumsum(weighted * (labels[order] > 0.5), axis=1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0.0) * hits / np.maximum(claimed, 1e-12)
    total = hits[:, -1]
    return np.where(total > 0, gained.sum(1) / np.maximum(total, 1e-12), np.nan)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Means over the first axis of what is no NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(0)
    return np.where(count > 0, np.where(there, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)


def _numbers(places: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(places), return_inverse=True)[1]
