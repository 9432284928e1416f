"""Scores of many resampled sets of tiles at once, for bootstrap intervals and permutation tests."""

import numpy as np


def mean_iou(confusions: np.ndarray) -> np.ndarray:
    """Return the mIoU of confusion matrices (draws, C, C), each over the classes that occur in it."""
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    union = confusions.sum(1) + confusions.sum(2) - hits
    return mean_of_defined(np.where(union > 0, hits / np.maximum(union, 1e-12), np.nan).T)


def average_precisions(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the `average_precision` of one class for each weighted set of tiles (draws,)."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last of each run of equal probabilities
    weighted = weights[:, order].astype(float)
    claimed = np.cumsum(weighted, axis=1)[:, last]
    hits = np.cumsum(weighted * (labels[order] > 0.5), axis=1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0.0) * hits / np.maximum(claimed, 1e-12)
    total = hits[:, -1]
    return np.where(total > 0, gained.sum(1) / np.maximum(total, 1e-12), np.nan)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return means over the first axis, ignoring NaN; NaN if all values are NaN."""
    defined = ~np.isnan(values)
    count = defined.sum(0)
    return np.where(count > 0, np.where(defined, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)


def mean_of_tiles(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of a value per tile (n,) for each weighted set of tiles (draws,), ignoring NaN."""
    defined = ~np.isnan(values)
    count = weights @ defined
    return np.where(count > 0, weights @ np.where(defined, values, 0.0) / np.maximum(count, 1), np.nan)
