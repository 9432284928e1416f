"""The coefficients that predict a band from the three below it, fitted to each tile."""

import numpy as np

from shards.sensors.sensor import NODATA

COEFFICIENTS = 4
"""Coefficients of a band: the three bands below, and a constant."""

_UNIT = 1.0 / 2048.0
_FIT_ROWS = 4  # every fourth row is enough to fit four numbers


def fit(flat: np.ndarray, width: int) -> np.ndarray:
    """Return least-squares coefficients, int16 (bands, 4), in units of 2**-11, and the constant in units of 1.

    The normal equations are built from exact integer sums and solved by plain elimination in float64, all bands at
    once, which gives the same bytes on every machine. LAPACK does not guarantee that.
    """
    from shards.format import kernels

    sums = np.empty((len(flat), 5, 5), dtype=np.int64)
    kernels.gram(flat, width, _FIT_ROWS, np.int16(NODATA), sums)
    matrix = sums.astype(np.float64)
    left, right = matrix[:, :4, :4], matrix[:, :4, 4]
    diagonal = np.arange(COEFFICIENTS)
    left[:, diagonal, diagonal] += 0.25 * np.maximum(matrix[:, 3, 3], 1.0)[:, None]  # flat bands have no unique fit
    solution = _eliminate(left, right)
    solution[:, :3] /= _UNIT
    return np.clip(np.rint(solution), -32768, 32767).astype(np.int16)


def _eliminate(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve (n, k, k) positive definite systems without pivoting; returns float64 (n, k)."""
    left, right = left.copy(), right.copy()
    size = right.shape[1]
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = left[:, row, pivot] / left[:, pivot, pivot]
            left[:, row, pivot:] -= factor[:, None] * left[:, pivot, pivot:]
            right[:, row] -= factor * right[:, pivot]
    for pivot in reversed(range(size)):
        for row in range(pivot + 1, size):
            right[:, pivot] -= left[:, pivot, row] * right[:, row]
        right[:, pivot] /= left[:, pivot, pivot]
    return right
