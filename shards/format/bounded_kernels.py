"""Native loops of the codec with a bound on the error; see shards/format/kernels.py for how they are compiled.

The code of a pixel is 0 for a missing value and 1 for a zero, which are restored exactly, and 2 plus the zig-zag code
of its quantized residual otherwise. In bands of bound 0 it is the lossless codec's: the zig-zag code of the residual.

Whole numbers are held as float32 between the prediction and the result: they are exact below 2**24, and vectorized,
whereas numba computes products and differences of integers in 64 bits.
"""

import numpy as np

from shards.format.kernels import SCALE, _inline, _jit, _unzigzag, _zigzag, f32
from shards.format.kernels import _rounded as _rounded_integer


@_inline
def _rounded(prediction: np.float32) -> np.float32:
    """Round to the nearest int16, ties upward, as a float."""
    return f32(np.int32(min(max(prediction, f32(-32768.0)), f32(32767.0)) + f32(32768.5))) - f32(32768.0)


@_inline
def _quantized(prediction: np.float32, steps: np.float32, step: np.float32) -> np.int16:
    """Return the value that a reader restores; the lowest int16 is a missing value."""
    return np.int16(np.int32(min(max(prediction + steps * step, f32(-32767.0)), f32(32767.0))))


@_jit
def difference(
    tile: np.ndarray,
    units: np.ndarray,
    bounds: np.ndarray,
    nodata: np.int16,
    block: int,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """Fill ``low`` and ``high``, uint8 (bands, pixels), from a tile; the inverse of `restore` up to the bounds.

    Args:
        tile: int16 (bands, pixels).
        units: int16 (bands, 4), coefficients of the three bands below in units of 2**-11, and the constant.
        bounds: int16 (bands,), largest error in digital numbers.
        block: pixels processed through all bands at a time.
    """
    bands, pixels = tile.shape
    restored = np.zeros((4, block), np.int16)  # the current band and the three below, as a reader has them
    for start in range(0, pixels, block):
        end = min(start + block, pixels)
        restored[:] = 0
        for band in range(bands):
            below1, below2, below3 = restored[(band - 1) % 4], restored[(band - 2) % 4], restored[(band - 3) % 4]
            c1, c2, c3 = f32(units[band, 0]) * SCALE, f32(units[band, 1]) * SCALE, f32(units[band, 2]) * SCALE
            constant, bound = f32(units[band, 3]), np.int32(bounds[band])
            step = f32(2 * bound + 1)
            source, target = tile[band, start:end], restored[band % 4]
            lows, highs = low[band, start:end], high[band, start:end]
            for i in range(end - start):
                prediction = _rounded(constant + c1 * f32(below1[i]) + c2 * f32(below2[i]) + c3 * f32(below3[i]))
                value = source[i]
                if bound == 0:
                    code = _zigzag(np.int16(np.int32(value) - np.int32(prediction)))
                    target[i] = value
                elif value == nodata:
                    code = np.uint16(0)
                    target[i] = nodata
                elif value == 0:
                    code = np.uint16(1)
                    target[i] = 0
                else:
                    steps = np.floor((f32(value) - prediction + f32(bound)) / step)
                    code = np.uint16(_zigzag(np.int16(np.int32(steps))) + np.uint16(2))
                    target[i] = _quantized(prediction, steps, step)
                lows[i] = np.uint8(code & np.uint16(255))
                highs[i] = np.uint8(code >> np.uint16(8))


@_jit
def restore(
    low: np.ndarray,
    high: np.ndarray,
    rows: np.ndarray,
    units: np.ndarray,
    bounds: np.ndarray,
    nodata: np.int16,
    block: int,
    out: np.ndarray,
) -> None:
    """Restore a tile to within its bounds.

    Args:
        low: uint8 (bands, pixels), low bytes of the codes.
        high: uint8 (bands that need it, pixels), high bytes.
        rows: (bands,), row of each band in ``high``.
        units, bounds, block: as in `difference`.
        out: int16 (bands, pixels), filled in place.
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
            constant, bound = f32(units[band, 3]), np.int32(bounds[band])
            step = f32(2 * bound + 1)
            lows, highs, target = low[band, start:end], high[rows[band], start:end], out[band, start:end]
            if bound == 0:
                for i in range(end - start):
                    prediction = constant + c1 * f32(below1[i]) + c2 * f32(below2[i]) + c3 * f32(below3[i])
                    target[i] = np.int16(_rounded_integer(prediction) + _unzigzag(lows[i], highs[i]))
            else:
                for i in range(end - start):
                    prediction = constant + c1 * f32(below1[i]) + c2 * f32(below2[i]) + c3 * f32(below3[i])
                    symbol = f32(np.int16(_unzigzag(lows[i], highs[i])))  # of a code, not yet less 2
                    steps = symbol - f32(1.0) if symbol >= f32(0.0) else symbol + f32(1.0)
                    value = _quantized(_rounded(prediction), steps, step)
                    value = np.int16(0) if symbol == f32(-1.0) else value
                    target[i] = nodata if symbol == f32(0.0) else value


@_jit
def count_residuals(
    tile: np.ndarray, units: np.ndarray, width: int, every: int, nodata: np.int16, counts: np.ndarray
) -> None:
    """Count the magnitudes of each band's residuals over a sample of pixels.

    Args:
        tile: int16 (bands, pixels).
        units: int16 (bands, 4), coefficients as in `difference`.
        width: pixels in a row.
        every: every ``every``-th row is used.
        nodata: pixels where the band or a band below has this value, or where the band is 0, are skipped.
        counts: int64 (bands, magnitudes), filled in place; larger magnitudes count as the largest.
    """
    bands, pixels = tile.shape
    zero = np.zeros(pixels, np.int16)
    counts[:] = 0
    most = np.int32(counts.shape[1] - 1)
    for band in range(bands):
        below1 = tile[band - 1] if band > 0 else zero
        below2 = tile[band - 2] if band > 1 else zero
        below3 = tile[band - 3] if band > 2 else zero
        c1, c2, c3 = f32(units[band, 0]) * SCALE, f32(units[band, 1]) * SCALE, f32(units[band, 2]) * SCALE
        constant, source = f32(units[band, 3]), tile[band]
        for row in range(0, pixels, width * every):
            for i in range(row, row + width):
                x1, x2, x3, y = below1[i], below2[i], below3[i], source[i]
                if x1 == nodata or x2 == nodata or x3 == nodata or y == nodata or y == 0:
                    continue
                prediction = constant + c1 * f32(x1) + c2 * f32(x2) + c3 * f32(x3)
                counts[band, min(abs(np.int32(y) - _rounded_integer(prediction)), most)] += 1
