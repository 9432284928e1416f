"""How sure a score is: bootstrap intervals over test places, and a paired test of two models on the same places.

Tiles of one place are not independent, so places are drawn, not tiles. Scores that are no means over tiles (mIoU, mAP)
are computed anew from every draw; what they are made of is added up over places first where it adds up.
"""

from collections.abc import Sequence

import numpy as np

from finetune.metrics import average_precision
from finetune.tasks import Kind

DRAWS = 1000
Runs = Sequence[np.ndarray]
"""Units (n, ...) of one model trained with several seeds, on the same tiles; see finetune/metrics.py."""


def bootstrap_interval(
    kind: Kind, runs: Runs, places: Sequence[str], baseline: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the task's primary score, mean over seeds, from draws of test places with replacement.

    Args:
        places: the place of each tile.
        baseline: regression: the training mean of each target.
    """
    numbers = _numbers(places)
    count = int(numbers.max()) + 1
    drawn = np.random.default_rng(seed).integers(0, count, (draws, count))
    weights = np.stack([np.bincount(one, minlength=count) for one in drawn])
    values = np.mean([weighted_scores(kind, units, weights[:, numbers], baseline) for units in runs], axis=0)
    low, high = np.percentile(values, [2.5, 97.5])
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
    coins = np.random.default_rng(seed).random((draws, int(numbers.max()) + 1)) < 0.5
    coins = np.vstack([np.zeros(coins.shape[1], bool), coins])[:, numbers]  # first of all as it was
    differences = np.zeros(draws + 1)
    for one, two in zip(first, second, strict=True):
        both = np.concatenate([one, two])
        kept, exchanged = np.hstack([~coins, coins]).astype(float), np.hstack([coins, ~coins]).astype(float)
        differences += weighted_scores(kind, both, kept, baseline) - weighted_scores(kind, both, exchanged, baseline)
    observed, others = abs(differences[0]), np.abs(differences[1:])
    return float((1 + (others >= observed - 1e-12).sum()) / (1 + draws))


def smallest_p(places: Sequence[str], draws: int = DRAWS) -> float:
    """The smallest p-value that `paired_test` can give with so many places, but for luck of the draw."""
    return max(2.0 ** (1 - len(set(places))), 1 / (1 + draws))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given."""
    order = np.argsort(p_values)
    corrected, largest = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()


def weighted_scores(kind: Kind, units: np.ndarray, weights: np.ndarray, baseline: np.ndarray | None) -> np.ndarray:
    """The primary score (PRIMARY) of each set of tiles, (draws,).

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
    return np.array([_mean_precision(units, row.astype(np.int64)) for row in weights])


def _mean_iou(confusions: np.ndarray) -> np.ndarray:
    """Of confusion matrices (draws, C, C), over the classes that occur."""
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    union = confusions.sum(1) + confusions.sum(2) - hits
    occurs = union > 0
    return np.where(occurs, hits / np.maximum(union, 1e-12), 0).sum(1) / np.maximum(occurs.sum(1), 1)


def _mean_precision(units: np.ndarray, counts: np.ndarray) -> float:
    drawn = np.repeat(units, counts, axis=0)
    columns = zip(drawn[:, 0].T, drawn[:, 1].T > 0.5, strict=True)
    found = [one for one in (average_precision(*column) for column in columns) if one is not None]
    return float(np.mean(found)) if found else 0.0


def _numbers(places: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(places), return_inverse=True)[1]
