"""How sure a score is: bootstrap intervals over test places, and a paired test of two models on the same places.

Tiles of one place are not independent, so places are drawn, not tiles. Scores that are no means over tiles (mIoU, mAP)
are computed anew from every draw.
"""

from collections.abc import Sequence

import numpy as np

from finetune.metrics import PRIMARY, compute_scores
from finetune.tasks import Kind

DRAWS = 1000


def bootstrap_interval(
    kind: Kind,
    runs: Sequence[np.ndarray],
    places: np.ndarray,
    baseline: np.ndarray | None = None,
    metric: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of the score's mean over seeds, from draws of test places with replacement.

    Args:
        runs: units (n, ...) of one model trained with several seeds, on the same tiles.
        places: (n,) the place of each tile, as a number.
        metric: name; None for the task's primary score.
    """
    rng, metric = np.random.default_rng(seed), metric or PRIMARY[kind]
    groups = _rows_by_place(places)
    values = np.empty(draws)
    for draw in range(draws):
        rows = np.concatenate([groups[one] for one in rng.integers(0, len(groups), len(groups))])
        values[draw] = np.mean([compute_scores(kind, units[rows], baseline).values[metric] for units in runs])
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_test(
    kind: Kind,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    places: np.ndarray,
    baseline: np.ndarray | None = None,
    metric: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the difference of two models' scores: at random places, their predictions are exchanged.

    Seeds are paired in order. With n places there are 2^n exchanges, so few places can't give a small p.
    """
    rng, metric = np.random.default_rng(seed), metric or PRIMARY[kind]
    numbers = np.unique(places, return_inverse=True)[1]
    pairs = list(zip(first, second, strict=True))

    def difference(exchanged: np.ndarray) -> float:
        total = 0.0
        for one, two in pairs:
            where = exchanged.reshape(-1, *[1] * (one.ndim - 1))
            a = compute_scores(kind, np.where(where, two, one), baseline).values[metric]
            b = compute_scores(kind, np.where(where, one, two), baseline).values[metric]
            total += a - b
        return total / len(pairs)

    observed = abs(difference(np.zeros(len(places), bool)))
    coins = rng.random((draws, numbers.max() + 1)) < 0.5
    extreme = sum(abs(difference(coin[numbers])) >= observed - 1e-12 for coin in coins)
    return (1 + extreme) / (1 + draws)


def _rows_by_place(places: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(places, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(places[order])) + 1)
