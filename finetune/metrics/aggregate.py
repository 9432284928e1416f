"""One number for several tasks: the interquartile mean of normalized scores, as GEO-Bench reports it.

Scores of a task are scaled to 0 for the lowest and 1 for the highest of all models and seeds (Lacoste et al., arXiv
2306.03831); the interquartile mean leaves out the lowest and the highest quarter of the scores of all tasks and seeds
(Agarwal et al., arXiv 2108.13264).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000


@dataclass(frozen=True)
class Aggregate:
    """A model on all tasks.

    Attributes:
        iqm: interquartile mean of its normalized scores.
        interval: 95 % interval, from draws of seeds with replacement within each task.
        rank: mean over tasks of its rank, from 1 for the best mean score.
    """

    iqm: float
    interval: tuple[float, float]
    rank: float


def aggregate(scores: Mapping[str, Sequence[np.ndarray]], draws: int = DRAWS, seed: int = 0) -> dict[str, Aggregate]:
    """Return each model's aggregate, the best first.

    Args:
        scores: for each model, the scores of all seeds (seeds,) on each task; higher is better. Tasks are in one order.
    """
    if not scores:
        return {}
    tasks = list(zip(*scores.values(), strict=True))
    lows = [min(values.min() for values in task) for task in tasks]
    spans = [max(values.max() for values in task) - low or 1.0 for task, low in zip(tasks, lows, strict=True)]
    means = np.array([[values.mean() for values in of_model] for of_model in scores.values()])
    ranks = 1 + (means[None] > means[:, None]).sum(1)
    rng = np.random.default_rng(seed)
    found = {}
    for (name, of_model), rank in zip(scores.items(), ranks.mean(1), strict=True):
        scaled = [(values - low) / span for values, low, span in zip(of_model, lows, spans, strict=True)]
        drawn = np.concatenate([rng.choice(values, (draws, len(values))) for values in scaled], axis=1)
        low, high = np.percentile(_interquartile_mean(drawn), [2.5, 97.5])
        iqm = float(_interquartile_mean(np.concatenate(scaled)[None])[0])
        found[name] = Aggregate(iqm, (float(low), float(high)), float(rank))
    return dict(sorted(found.items(), key=lambda pair: -pair[1].iqm))


def _interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of each row (n, N), with shares of the values at its ends (n,)."""
    count = values.shape[1]
    position = np.arange(count + 1) / count
    weights = np.diff(np.clip(position, 0.25, 0.75))
    return np.sort(values, axis=1) @ (weights / weights.sum())
