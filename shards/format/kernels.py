"""Native loops of the tile codec, compiled by numba on first use and cached on disk.

They release the GIL. The prediction is computed in IEEE float32 in a fixed order, without fast-math, so that LLVM
neither reorders nor contracts operations: the same coefficients give the same prediction on every machine, which makes
the codec lossless across machines.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

f32 = np.float32
SCALE = np.float32(1.0 / 2048.0)
"""Value of one unit of a stored coefficient."""


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use and cache on disk; without a writable cache, compile in every process (seconds)."""
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache is writable
        return numba.njit(nogil=True, error_model="numpy")(function)


_inline = numba.njit(nogil=True, error_model="numpy", inline="always")


@_inline
def _rounded(prediction: np.float32) -> np.int32:
    """Round to the nearest int16, ties upward; NaN can't occur, since coefficients and pixels are finite."""
    return np.int32(min(max(prediction, f32(-32768.0)), f32(32767.0)) + f32(32768.5)) - np.int32(32768)


@_inline
def _zigzag(value: np.int16) -> np.uint16:
    """Map an int16 difference to uint16, small magnitudes to small codes."""
    return np.uint16((value << np.int16(1)) ^ (value >> np.int16(15)))


@_inline
def _unzigzag(low: np.uint8, high: np.uint8) -> np.int16:
    code = np.uint16(low) | (np.uint16(high) << np.uint16(8))
    return np.int16((code >> np.uint16(1)) ^ (-(code & np.uint16(1))))


@_jit
def restore(
    low: np.ndarray, high: np.ndarray, rows: np.ndarray, units: np.ndarray, out: np.ndarray, block: int
) -> None:
    """Undo the prediction from the three bands below.

    Args:
        low: uint8 (bands, pixels), low bytes of the zig-zag residuals.
        high: uint8 (bands that need it, pixels), high bytes.
        rows: (bands,), row of each band in ``high``.
        units: int16 (bands, 4), coefficients of the three bands below in units of 2**-11, and the constant.
        out: int16 (bands, pixels), filled in place.
        block: pixels processed through all bands at a time, so that the bands below stay in the cache.
    """
    bands, pixels = out.shape
    zero = np.zeros(block, np.int16)
    for start in range(0, pixels, block):
        end = min(start + block, pixels)
        for band in range(bands):
            below1 = out[band - 1, start:end] if band > 0 else zero
            below2 = out[band - 2, start:end] if band > 1 else zero
            below3 = out[band - 3, start:end] if band > 2 else zero
            c1, c2, c3 = f32(units[band, 0]) * SCALE, f32(units[band, 1]) * SCALE, f32(units[band, 2]) * SCALE
            constant = f32(units[band, 3])
            lows, highs, target = low[band, start:end], high[rows[band], start:end], out[band, start:end]
            for i in range(end - start):
                prediction = constant + c1 * f32(below1[i]) + c2 * f32(below2[i]) + c3 * f32(below3[i])
                target[i] = np.int16(_rounded(prediction) + _unzigzag(lows[i], highs[i]))


@_jit
def difference(tile: np.ndarray, units: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Fill ``low`` and ``high`` from int16 ``tile`` (bands, pixels); the inverse of `restore`."""
    bands, pixels = tile.shape
    zero = np.zeros(pixels, np.int16)
    for band in range(bands):
        below1 = tile[band - 1] if band > 0 else zero
        below2 = tile[band - 2] if band > 1 else zero
        below3 = tile[band - 3] if band > 2 else zero
        c1, c2, c3 = f32(units[band, 0]) * SCALE, f32(units[band, 1]) * SCALE, f32(units[band, 2]) * SCALE
        constant = f32(units[band, 3])
        source, lows, highs = tile[band], low[band], high[band]
        for i in range(pixels):
            prediction = constant + c1 * f32(below1[i]) + c2 * f32(below2[i]) + c3 * f32(below3[i])
            code = _zigzag(np.int16(np.int32(source[i]) - _rounded(prediction)))
            lows[i] = np.uint8(code & np.uint16(255))
            highs[i] = np.uint8(code >> np.uint16(8))


@_jit
def gram(tile: np.ndarray, width: int, step: int, nodata: np.int16, sums: np.ndarray) -> None:
    """Sum the products of each band with its predictors over a sample of pixels, exactly in int64.

    Args:
        tile: int16 (bands, pixels).
        width: pixels in a row.
        step: every ``step``-th row is used.
        nodata: pixels where the band or a predictor has this value are skipped.
        sums: int64 (bands, 5, 5), filled in place with products of (3 bands below, 1, the band itself).
    """
    bands, pixels = tile.shape
    zero = np.zeros(pixels, np.int16)
    vectors = np.empty((5, width), np.int16)
    vector1, vector2, vector3, valid, vector = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]
    for band in range(bands):
        sums[band] = 0
        below1 = tile[band - 1] if band > 0 else zero
        below2 = tile[band - 2] if band > 1 else zero
        below3 = tile[band - 3] if band > 2 else zero
        current = tile[band]
        for first in range(0, pixels, width * step):
            end = first + width
            line1, line2, line3, line = below1[first:end], below2[first:end], below3[first:end], current[first:end]
            for i in range(width):
                x1, x2, x3, y = line1[i], line2[i], line3[i], line[i]
                measured = np.int16((x1 != nodata) & (x2 != nodata) & (x3 != nodata) & (y != nodata))
                vector1[i] = measured * x1
                vector2[i] = measured * x2
                vector3[i] = measured * x3
                valid[i] = measured
                vector[i] = measured * y
            add_products(vectors, sums[band])
        for a in range(5):
            for b in range(a):
                sums[band, a, b] = sums[band, b, a]


@_jit
def add_products(vectors: np.ndarray, sums: np.ndarray) -> None:
    """Add the scalar products of int16 vectors (k, n) to the upper triangle of ``sums``, int64 (k, k), exactly."""
    for a in range(len(vectors)):
        first = vectors[a]
        for b in range(a, len(vectors)):
            second, total = vectors[b], np.int64(0)
            for i in range(vectors.shape[1]):
                total += np.int64(first[i]) * np.int64(second[i])
            sums[a, b] += total


@_jit
def solve(left: np.ndarray, right: np.ndarray) -> None:
    """Solve positive definite systems by elimination in float64 without pivoting, in the same order on every machine.

    Args:
        left: float64 (n, k, k), overwritten.
        right: float64 (n, k); the solutions afterwards.
    """
    size = right.shape[1]
    for number in range(len(left)):
        matrix, vector = left[number], right[number]
        for pivot in range(size):
            for row in range(pivot + 1, size):
                factor = matrix[row, pivot] / matrix[pivot, pivot]
                for column in range(pivot, size):
                    matrix[row, column] -= factor * matrix[pivot, column]
                vector[row] -= factor * vector[pivot]
        for pivot in range(size - 1, -1, -1):
            for row in range(pivot + 1, size):
                vector[pivot] -= matrix[pivot, row] * vector[row]
            vector[pivot] /= matrix[pivot, pivot]


@_jit
def band_sums(tile: np.ndarray, nodata: np.int16, sums: np.ndarray) -> None:
    """Compute count, sum, sum of squares, minimum and maximum of each band's valid pixels, exactly in int64.

    Args:
        tile: int16 (bands, pixels).
        nodata: value of missing pixels.
        sums: int64 (5, bands), filled in place; minimum 32767 and maximum -32767 for bands without valid pixels.
    """
    for band in range(tile.shape[0]):
        count, total, squares = np.int64(0), np.int64(0), np.int64(0)
        low, high = np.int16(32767), np.int16(-32767)
        values = tile[band]
        for i in range(len(values)):
            value = values[i]
            if value != nodata:
                number = np.int64(value)
                count += 1
                total += number
                squares += number * number
                low = min(low, value)
                high = max(high, value)
        sums[0, band], sums[1, band], sums[2, band], sums[3, band], sums[4, band] = count, total, squares, low, high


@_jit
def count_values(tile: np.ndarray, histogram: np.ndarray) -> None:
    """Add the values of a tile, int16 (bands, pixels), to a histogram, int64 (bands, 65536), starting at -32768."""
    for band in range(tile.shape[0]):
        for value in tile[band]:
            histogram[band, np.int64(value) + 32768] += 1
