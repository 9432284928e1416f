"""The coefficients that predict a band from the three below it, fitted to each tile."""

import numpy as np

from shards.sensors.sensor import NODATA

COEFFICIENTS = 4
"""Coefficients of a band: the three bands below, and a constant."""

WEIGHTS = 4
"""Weights of a band that is corrected by errors in the row above, and by residuals in the three bands below."""

_UNITS = 2048.0  # of a coefficient
_MOST = 32767.0 / _UNITS
_RIDGE = 0.25  # flat bands have no unique fit
_FIT_ROWS = 4  # every fourth row is enough to fit four numbers


def fit(flat: np.ndarray, width: int) -> np.ndarray:
    """Return least-squares coefficients, int16 (bands, 4), in units of 2**-11, and the constant in units of 1.

    The normal equations are built from exact integer sums and solved by plain elimination in float64, which gives the
    same bytes on every machine. LAPACK does not guarantee that. The constant is not shrunk: it would be biased. Bands
    whose coefficients don't fit into int16 are fitted again with a larger ridge.
    """
    from shards.format import kernels

    sums = np.empty((len(flat), 5, 5), dtype=np.int64)
    kernels.gram(flat, width, _FIT_ROWS, np.int16(NODATA), sums)
    counts = np.maximum(sums[:, 3, 3], 1).astype(np.float64)
    solution = np.empty((len(flat), COEFFICIENTS))
    bands, ridge, below = np.arange(len(flat)), _RIDGE, np.arange(3)
    while bands.size:
        left, right = sums[bands, :4, :4].astype(np.float64), sums[bands, :4, 4].astype(np.float64)
        left[:, below, below] += ridge * counts[bands, None]
        left[:, 3, 3] = counts[bands]
        kernels.solve(left, right)
        solution[bands] = right
        bands, ridge = bands[(np.abs(right[:, :3]) > _MOST).any(axis=1)], 4.0 * ridge
    solution[:, :3] = np.rint(solution[:, :3] * _UNITS)
    return np.clip(np.rint(solution), -32768, 32767).astype(np.int16)
