"""Native loops of the codec that predicts from the row above; see shards/format/kernels.py for how they are compiled.

All arithmetic is on integers that wrap: of 32 bits in the prediction from the bands below, and of 16 bits in the rest.
It has the same results in any order of operations, and any numbers in a file give a tile.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from shards.format.kernels import _inline, _jit, _unzigzag, _zigzag, add_products, solve
from shards.format.lanes import LANES, Vectors, constant, vector_type
from shards.format.least_squares import WEIGHTS

LIMIT = 511
"""Largest magnitude of an error or residual that corrects others: edges count no more, and sums fit into 16 bits."""

_SHIFT, _HALF = np.int32(11), np.int32(1 << 10)  # coefficients are in units of 2**-11
_WEIGHT_SHIFT, _WEIGHT_HALF = np.int16(5), np.int16(1 << 4)  # weights are in units of 2**-5
_FIT_ROWS = 4  # every fourth row is enough to fit four weights
_MOST_SUM = 4096.0  # root mean square of weighted sums, an eighth of what 16 bits hold


@_jit
def difference(tile: np.ndarray, numbers: np.ndarray, nodata: np.int16, low: np.ndarray, high: np.ndarray) -> None:
    """Fit the weights of each band, and fill ``low`` and ``high``; the inverse of `restore`.

    Args:
        tile: int16 (bands, height, width).
        numbers: int16 (bands, 8). The first four are given: coefficients of the three bands below in units of 2**-11,
            and the constant. The others are filled in place: the weight of errors in the row above, whose sum is four
            times their mean, and those of residuals in the three bands below, in units of 2**-5.
        nodata: pixels with this value don't count in the fit.
        low, high: uint8 (bands, height, width), bytes of the zig-zag residuals, filled in place.
    """
    bands, height, width = tile.shape
    errors = np.zeros((height + 1, width + 2), np.int16)  # of the prediction from the bands below, clipped
    residuals = np.zeros((4, height, width), np.int16)  # of this band and the three below, clipped
    for band in range(bands):
        below1, below2, below3 = tile[max(band - 1, 0)], tile[max(band - 2, 0)], tile[max(band - 3, 0)]
        residual, residual1 = residuals[band % 4], residuals[(band - 1) % 4]
        residual2, residual3 = residuals[(band - 2) % 4], residuals[(band - 3) % 4]
        known = _numbers_of(numbers, band)
        for row in range(height):
            source, error, target = tile[band, row], errors[row + 1], residual[row]
            line1, line2, line3 = below1[row], below2[row], below3[row]
            for i in range(width):
                target[i] = np.int16(
                    source[i] - _predicted(known, line1[i], line2[i], line3[i])
                )  # until it is corrected
                error[i + 1] = _clip(target[i])
        _fit_weights(tile[band], nodata, errors, residuals, band, numbers)
        known = _numbers_of(numbers, band)
        for row in range(height):
            above, target, lows, highs = errors[row], residual[row], low[band, row], high[band, row]
            line1, line2, line3 = residual1[row], residual2[row], residual3[row]
            for i in range(width):
                correction = _correction(known, _smoothed(above, i), line1[i], line2[i], line3[i])
                rest = np.int16(target[i] - correction)
                code = _zigzag(rest)
                lows[i] = np.uint8(code & np.uint16(255))
                highs[i] = np.uint8(code >> np.uint16(8))
                target[i] = _clip(rest)


@_jit
def _fit_weights(
    values: np.ndarray, nodata: np.int16, errors: np.ndarray, residuals: np.ndarray, band: int, numbers: np.ndarray
) -> None:
    """Fit the weights of a band by least squares to its errors, from exact integer sums, and fill its ``numbers``."""
    height, width = values.shape
    vectors, sums = np.zeros((WEIGHTS + 1, width), np.int16), np.zeros((WEIGHTS + 1, WEIGHTS + 1), np.int64)
    smoothed, wanted, valid, count = vectors[0], vectors[WEIGHTS], np.empty(width, np.int16), np.int64(0)
    for row in range(min(1, height - 1), height, _FIT_ROWS):  # nothing is above the first row
        source, above, error = values[row], errors[row], errors[row + 1]
        for i in range(width):
            valid[i] = np.int16((source[i] != nodata) & (abs(error[i + 1]) < LIMIT))
            smoothed[i] = valid[i] * _smoothed(above, i)
            wanted[i] = valid[i] * error[i + 1]
        for step in range(1, min(WEIGHTS, band + 1)):
            line, residual = vectors[step], residuals[(band - step) % 4, row]
            for i in range(width):
                line[i] = valid[i] * residual[i]
        count += valid.sum()
        add_products(vectors, sums)
    count = max(count, np.int64(1))
    left, right = np.empty((1, WEIGHTS, WEIGHTS), np.float64), np.empty((1, WEIGHTS), np.float64)
    for a in range(WEIGHTS):
        right[0, a] = sums[a, WEIGHTS]
        for b in range(WEIGHTS):
            left[0, a, b] = sums[min(a, b), max(a, b)]
        left[0, a, a] += 0.25 * count  # bands without errors have no unique fit
    solve(left, right)
    square = 0.0  # mean square of the weighted sums
    for a in range(WEIGHTS):
        right[0, a] *= 32.0
        for b in range(WEIGHTS):
            square += right[0, a] * right[0, b] * sums[min(a, b), max(a, b)] / count
    scale = _MOST_SUM / np.sqrt(np.maximum(square, _MOST_SUM * _MOST_SUM))
    for k in range(WEIGHTS):
        weight = np.rint(right[0, k] * scale)
        numbers[band, 4 + k] = np.int16(np.minimum(np.maximum(weight, -32768.0), 32767.0))


@_jit
def restore(
    low: np.ndarray, high: np.ndarray, rows: np.ndarray, numbers: np.ndarray, block: int, out: np.ndarray
) -> None:
    """Undo the prediction.

    Args:
        low: uint8 (bands, height, width), low bytes of the zig-zag residuals.
        high: uint8 (bands that need it, height, width), high bytes.
        rows: (bands,), index of each band in ``high``.
        numbers: int16 (bands, 8), see `difference`.
        block: rows processed through all bands at a time, so that the bands below stay in the cache.
        out: int16 (bands, height, width), filled in place.
    """
    bands, height, width = out.shape
    errors = np.zeros((bands, 2, width + 2), np.int16)  # of even and of odd rows
    residuals = np.zeros((4, block, width), np.int16)
    for start in range(0, height, block):
        for band in range(bands):
            below1, below2, below3 = max(band - 1, 0), max(band - 2, 0), max(band - 3, 0)
            residual, residual1 = residuals[band % 4], residuals[(band - 1) % 4]
            residual2, residual3 = residuals[(band - 2) % 4], residuals[(band - 3) % 4]
            known = _numbers_of(numbers, band)
            for row in range(start, min(start + block, height)):
                line = row - start
                codes = low[band, row], high[rows[band], row]
                below = out[below1, row], out[below2, row], out[below3, row]
                corrections = errors[band, (row + 1) % 2], residual1[line], residual2[line], residual3[line]
                results = out[band, row], errors[band, row % 2], residual[line]
                if width < LANES:
                    _restore_pixels(codes, below, corrections, known, results)
                else:
                    for first in range(0, width, LANES):  # the last vector overlaps the one before it
                        _restore_lanes(codes, below, corrections, known, results, min(first, width - LANES))


@_inline
def _numbers_of(numbers: np.ndarray, band: int) -> Any:
    """Return a band's constant with half a unit, three coefficients and four weights, 0 for bands that don't exist."""
    zero = np.int16(0)
    coefficient1, weight1 = (numbers[band, 0], numbers[band, 5]) if band > 0 else (zero, zero)
    coefficient2, weight2 = (numbers[band, 1], numbers[band, 6]) if band > 1 else (zero, zero)
    coefficient3, weight3 = (numbers[band, 2], numbers[band, 7]) if band > 2 else (zero, zero)
    constant = np.int32((np.int32(numbers[band, 3]) << _SHIFT) + _HALF)
    coefficients = np.int32(coefficient1), np.int32(coefficient2), np.int32(coefficient3)
    return (constant, *coefficients, numbers[band, 4], weight1, weight2, weight3)


@_inline
def _predicted(numbers: Any, below1: np.int16, below2: np.int16, below3: np.int16) -> np.int16:
    """Return the prediction of a pixel from the bands below."""
    products = numbers[1] * np.int32(below1) + numbers[2] * np.int32(below2) + numbers[3] * np.int32(below3)
    return np.int16(np.int32(numbers[0] + products) >> _SHIFT)


@_inline
def _smoothed(above: np.ndarray, i: int) -> np.int16:
    """Return the sum of the three errors above a pixel, the middle one twice; ``above`` starts a pixel earlier."""
    return np.int16(above[i] + above[i + 1] + above[i + 1] + above[i + 2])


@_inline
def _correction(numbers: Any, above: np.int16, below1: np.int16, below2: np.int16, below3: np.int16) -> np.int16:
    """Return what is added to a prediction for the errors above and the residuals below."""
    products = numbers[4] * above + numbers[5] * below1 + numbers[6] * below2 + numbers[7] * below3
    return np.int16(np.int16(products + _WEIGHT_HALF) >> _WEIGHT_SHIFT)


@_inline
def _clip(value: np.int16) -> np.int16:
    return np.int16(min(max(value, np.int16(-LIMIT)), np.int16(LIMIT)))


@_inline
def _restore_pixels(codes: Any, below: Any, corrections: Any, numbers: Any, results: Any) -> None:
    """Restore a row; arguments as for `_restore_lanes`, which does the same for many pixels at a time."""
    for i in range(len(results[0])):
        residual = _unzigzag(codes[0][i], codes[1][i])
        predicted = _predicted(numbers, below[0][i], below[1][i], below[2][i])
        above = _smoothed(corrections[0], i)
        correction = _correction(numbers, above, corrections[1][i], corrections[2][i], corrections[3][i])
        error = np.int16(correction + residual)
        results[0][i] = np.int16(predicted + error)
        results[1][i + 1] = _clip(error)
        results[2][i] = _clip(residual)


def _lanes(
    typing: Any, codes: Any, below: Any, corrections: Any, numbers: Any, results: Any, first: Any
) -> tuple[Any, Any]:
    """Restore ``LANES`` pixels of a row from pixel ``first`` on; all but ``first`` are tuples.

    Args:
        codes: low and high bytes of the row.
        below: the row in the three bands below.
        corrections: errors in the row above, from a pixel earlier, and residuals of the row in the three bands below.
        numbers: of `_numbers_of`.
        results: pixels, errors (from a pixel earlier) and residuals of the row, filled in place.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (codes, below, corrections, numbers, results, first), kinds = arguments, signature.args
        vectors, add, multiply = Vectors(context, builder, first), builder.add, builder.mul

        total = vectors.splat(numbers, 0)
        for k in range(3):
            values = builder.sext(vectors.load(below, kinds[1], k), vector_type(32))
            total = add(total, multiply(values, vectors.splat(numbers, 1 + k)))
        predicted = builder.trunc(builder.ashr(total, constant(32, _SHIFT)), vector_type(16))

        low, high = (builder.zext(vectors.load(codes, kinds[0], k), vector_type(16)) for k in range(2))
        code = builder.or_(low, builder.shl(high, constant(16, 8)))
        sign = builder.sub(constant(16, 0), builder.and_(code, constant(16, 1)))
        residual = builder.xor(builder.lshr(code, constant(16, 1)), sign)

        left, middle, right = (vectors.load(corrections, kinds[2], 0, offset) for offset in range(3))
        above = add(add(left, right), add(middle, middle))
        total = add(multiply(above, vectors.splat(numbers, 4)), constant(16, _WEIGHT_HALF))
        for k in range(1, WEIGHTS):
            total = add(total, multiply(vectors.load(corrections, kinds[2], k), vectors.splat(numbers, 4 + k)))
        error = add(builder.ashr(total, constant(16, _WEIGHT_SHIFT)), residual)

        vectors.store(results, kinds[4], 0, add(predicted, error))
        vectors.store(results, kinds[4], 1, vectors.clip(error, LIMIT), offset=1)
        vectors.store(results, kinds[4], 2, vectors.clip(residual, LIMIT))
        return context.get_dummy_value()

    return types.void(codes, below, corrections, numbers, results, first), generate


_restore_lanes: Any = intrinsic(_lanes)
