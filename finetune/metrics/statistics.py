"""Uncertainty of scores: bootstrap intervals over test places, and a paired test of two models on the same places.

Tiles of one place are not independent, so places are drawn, not tiles. Scores that are not means over tiles (mIoU, mAP)
are recomputed for every draw from the per-tile statistics.
"""

from collections.abc import Callable, Sequence

import numpy as np

DRAWS = 1000
MOST_DRAWS = 10_000
AT_ONCE = 500
"""Number of exchanges held in memory at a time."""

Runs = Sequence[np.ndarray]
"""Per-tile statistics (n, ...) of one model trained with several seeds, on the same tiles."""

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps statistics (n, ...) and weights (draws, n), the count of each tile in each set, to the score of each set
(draws,); NaN where undefined. See TaskKind.resampled."""


def bootstrap_scores(score: Score, runs: Runs, places: Sequence[str], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return a score averaged over seeds for draws of test places with replacement, float64 (draws,).

    Models with the same places get the same draws, so that their scores can be subtracted.

    Args:
        places: place of each tile.
    """
    numbers = _numbers(places)
    count = int(numbers.max()) + 1
    drawn = np.random.default_rng(seed).integers(0, count, (draws, count))
    weights = np.stack([np.bincount(sample, minlength=count) for sample in drawn])
    return np.mean([score(statistics, weights[:, numbers]) for statistics in runs], axis=0)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the scores, or differences of scores, of draws.

    Draws with an undefined score are left out; both ends are NaN if all are undefined.
    """
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def bootstrap_interval(
    score: Score, runs: Runs, places: Sequence[str], draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of a score averaged over seeds; see `bootstrap_scores` and `interval`."""
    return interval(bootstrap_scores(score, runs, places, draws, seed))


def paired_test(
    score: Score,
    first: Runs,
    second: Runs,
    places: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """Return the two-sided p-value of the difference of two models' scores, exchanging predictions at random places.

    Seeds are paired in order. With n places there are 2^n exchanges, so few places cannot give a small p.
    """
    numbers = _numbers(places)
    random, count = np.random.default_rng(seed), int(numbers.max()) + 1
    observed = abs(_differences(score, first, second, np.zeros((1, len(numbers)), bool))[0])
    if not np.isfinite(observed):  # an undefined score is no evidence
        return 1.0
    as_large = 0
    for begin in range(0, draws, AT_ONCE):
        coins = random.random((min(AT_ONCE, draws - begin), count)) < 0.5
        permuted = np.abs(_differences(score, first, second, coins[:, numbers]))
        as_large += int((permuted >= observed - 1e-12).sum())
    return (1 + as_large) / (1 + draws)


def _differences(score: Score, first: Runs, second: Runs, coins: np.ndarray) -> np.ndarray:
    """Return the sum over seeds of the score of the first model minus that of the second (draws,), with predictions
    exchanged for the tiles where ``coins`` (draws, n) is true."""
    total = np.zeros(len(coins))
    original, exchanged = np.hstack([~coins, coins]).astype(float), np.hstack([coins, ~coins]).astype(float)
    for first_run, second_run in zip(first, second, strict=True):
        both = np.concatenate([first_run, second_run])
        total += score(both, original) - score(both, exchanged)
    return total


def smallest_p(places: Sequence[str], draws: int = DRAWS) -> float:
    """Return the smallest p-value that `paired_test` can be expected to give with these places."""
    return max(2.0 ** (1 - len(set(places))), 1 / (1 + draws))


def draws_for(comparisons: int) -> int:
    """Return the number of exchanges for each of several tests, so that after Holm's correction a clear difference
    still has a p-value well below 0.05."""
    return min(max(DRAWS, 50 * comparisons), MOST_DRAWS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple tests (Holm 1979), in the order given."""
    order = np.argsort(p_values)
    corrected, largest = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()


def _numbers(places: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(places), return_inverse=True)[1]
