"""Scores of a set of tiles, from labels and predictions or from sums over them.

Names: OA overall accuracy, micro_iou as SpectralEarth reports it (equals OA / (2 - OA)), mIoU the mean over the classes
that occur in labels or predictions; micro and macro F1; mAP macro and micro_mAP micro average precision; RMSE, MAE and
R2 are means over the targets; hyperview_score the mean over targets of MSE / MSE of predicting the training mean.
"""

import math
from dataclasses import dataclass, field

import numpy as np

THRESHOLD = 0.5
"""Probability from which a class of a multi-label task counts as predicted."""


@dataclass(frozen=True)
class Scores:
    """Values by name, without undefined ones, and lists over classes or targets by name; None for a class that does not
    occur."""

    values: dict[str, float] = field(default_factory=dict)
    by_output: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def are_finite(self) -> bool:
        """Whether all values are finite; undefined ones, such as the score of a class without pixels, are None in
        ``by_output`` and left out of means."""
        return all(math.isfinite(value) for value in self.values.values())


def segmentation_scores(confusion: np.ndarray) -> Scores:
    """Compute scores from one confusion matrix (C, C), labels in rows."""
    hits = np.diagonal(confusion)
    labeled, predicted = confusion.sum(1), confusion.sum(0)
    union = labeled + predicted - hits
    iou, f1, recall = _shares(hits, union), _shares(2 * hits, labeled + predicted), _shares(hits, labeled)
    total = int(confusion.sum())
    values = {
        "OA": float(hits.sum() / total) if total else None,
        "micro_iou": float(hits.sum() / union.sum()) if total else None,
        "mIoU": _mean(iou),
        "macro_f1": _mean(f1),
        "average_accuracy": _mean(recall),
    }
    return Scores(_defined(values), {"iou": iou, "f1": f1, "accuracy": recall})


def classification_scores(confusion: np.ndarray) -> Scores:
    """Compute scores from one confusion matrix (C, C) of tiles, labels in rows."""
    hits = np.diagonal(confusion)
    labeled, predicted = confusion.sum(1), confusion.sum(0)
    f1, recall = _shares(2 * hits, labeled + predicted), _shares(hits, labeled)
    total = int(confusion.sum())
    values = {
        "OA": float(hits.sum() / total) if total else None,
        "macro_f1": _mean(f1),
        "average_accuracy": _mean(recall),
    }
    return Scores(_defined(values), {"f1": f1, "accuracy": recall, "precision": _shares(hits, predicted)})


def multilabel_scores(probabilities: np.ndarray, labels: np.ndarray) -> Scores:
    """Compute scores from probabilities (n, C) and labels (n, C) bool; means are over classes with a label."""
    predicted = probabilities >= THRESHOLD
    hits, claimed, present = (predicted & labels).sum(0), predicted.sum(0), labels.sum(0)
    f1 = [
        None if not positives else float(2 * hit / (claim + positives))
        for hit, claim, positives in zip(hits, claimed, present, strict=True)
    ]
    precision = [average_precision(*column) for column in zip(probabilities.T, labels.T, strict=True)]
    values = {
        "OA": float((predicted == labels).mean()),
        "micro_f1": float(2 * hits.sum() / (claimed.sum() + present.sum())) if present.any() else None,
        "macro_f1": _mean(f1),
        "micro_mAP": average_precision(probabilities.ravel(), labels.ravel()),
        "mAP": _mean(precision),
    }
    return Scores(_defined(values), {"f1": f1, "average_precision": precision})


def average_precision(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the area under the stepwise precision-recall curve, with ties as one step; None without positives."""
    if not labels.any():
        return None
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], np.cumsum(labels[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last of each run of equal probabilities
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def regression_scores(predicted: np.ndarray, true: np.ndarray, baseline: np.ndarray) -> Scores:
    """Compute scores from predictions and true values (n, T).

    Args:
        baseline: mean squared error of a fixed prediction for each target (T,).
    """
    error = ((predicted - true) ** 2).mean(0)
    spread = true.var(0)
    ratio = error / np.maximum(baseline, 1e-12)
    r2 = [
        float(1 - squared / variance) if variance > 0 else None for squared, variance in zip(error, spread, strict=True)
    ]
    rmse = np.sqrt(error)
    values = {"hyperview_score": float(ratio.mean()), "RMSE": float(rmse.mean()), "R2": _mean(r2)}
    return Scores(_defined(values), {"rmse": rmse.tolist(), "r2": r2, "ratio": ratio.tolist()})


def moment_scores(sums: np.ndarray) -> Scores:
    """Compute scores from sums over pixels, float64 (5, T).

    Args:
        sums: per target, the number of pixels and the sums of absolute errors, squared errors, true values minus any
            constant, and the squares of these.
    """
    count, absolute, squares, centered, centered_squares = sums
    counted, number = count > 0, np.maximum(count, 1)
    spread = centered_squares - centered**2 / number
    rmse = _where(counted, np.sqrt(squares / number))
    mae = _where(counted, absolute / number)
    r2 = _where(counted & (spread > 0), 1 - squares / np.maximum(spread, 1e-300))
    values = {"RMSE": _mean(rmse), "MAE": _mean(mae), "R2": _mean(r2)}
    return Scores(_defined(values), {"rmse": rmse, "mae": mae, "r2": r2})


def tile_confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrix (C, C) of the pixels that count: labels below C."""
    counts = labels < classes
    pairs = labels[counts].astype(np.int64) * classes + predicted[counts]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _shares(parts: np.ndarray, totals: np.ndarray) -> list[float | None]:
    return [float(part / total) if total > 0 else None for part, total in zip(parts, totals, strict=True)]


def _where(defined: np.ndarray, values: np.ndarray) -> list[float | None]:
    return [float(value) if known else None for known, value in zip(defined, values, strict=True)]


def _mean(values: list[float | None]) -> float | None:
    """Return the mean of the defined values; None if there are none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _defined(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
