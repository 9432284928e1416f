"""Calibration: whether predictions of a confidence of 80 % are right in 80 % of the cases (Guo et al., arXiv
1706.04599).

Predictions are sorted by their confidence into bins of equal width. Sums over the bins are kept of every tile, so that
they add up over tiles and can be resampled.
"""

import numpy as np

BINS = 15
"""Number of bins, as in Guo et al."""

SUMS = ("count", "confidence", "hits")
"""What is summed in each bin: the number of predictions, their confidences, and how many of them are right."""

_EDGES = np.linspace(0, 1, BINS + 1)[1:-1]


def calibration_sums(confidences: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Return the `SUMS` of each bin, float64 (3, BINS); a bin includes its upper edge.

    Args:
        confidences: probability of each prediction (n,).
        hits: whether it is right, bool (n,).
    """
    bins = np.searchsorted(_EDGES, confidences)
    weights = (None, confidences, hits)
    return np.stack([np.bincount(bins, weight, BINS).astype(np.float64) for weight in weights])


def calibration_error(sums: np.ndarray) -> np.ndarray:
    """Return the expected calibration error of sums (..., 3, BINS): the mean distance of confidence and accuracy in a
    bin, weighted by its number of predictions; NaN without predictions."""
    count, confidence, hits = np.moveaxis(sums, -2, 0)
    total = count.sum(-1)
    return np.where(total > 0, np.abs(confidence - hits).sum(-1) / np.maximum(total, 1), np.nan)


def resampled_error(statistics: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the calibration error of weighted sets of tiles (draws,), from the sums of tiles (n, 3, BINS)."""
    return calibration_error(np.tensordot(weights, statistics, 1))
