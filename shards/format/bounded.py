"""The tile codec with a bound on the error: the lossless codec's prediction, with quantized residuals.

Every band has a bound E in digital numbers. Residuals are rounded to multiples of 2 E + 1, and the next band is
predicted from what a reader will have (closed loop), so errors don't add up: every pixel is within E of its value.
Missing values and zeros have codes of their own and stay exact. Bands of bound 0 are lossless.

A bound is a number, the same for all bands, or a share of each band's noise in the tile. Noise is estimated from the
residuals of the prediction, by their median, so that edges and clouds don't count. A band that the ones below predict
poorly, such as one after a gap, would seem noisier than it is: the median over a band and its two neighbors is taken.
"""

import re
from typing import Any

import numpy as np
from numcodecs import register_codec

from shards.errors import ShardError
from shards.format.least_squares import COEFFICIENTS, fit
from shards.format.planes import BLOCK, PixelwiseCodec, buffer, checked
from shards.sensors.sensor import NODATA

MOST_ERROR = 1000
"""Largest bound in digital numbers."""

_NOISE = re.compile(r"noise/(\d+(?:\.\d+)?)")
_PREDICTED = 3  # bands before this one have too few bands below to predict them to within their noise
_SAMPLED_ROWS = 4  # every fourth row
_HISTOGRAM = 4096
_NORMAL_MEDIAN = 0.6744897501960817  # median of the magnitude of a standard normal variable


def parse_max_error(text: str, scale: float) -> str:
    """Return ``max_error`` of `BoundedPredictor` for `pack --max-error`.

    Args:
        text: digital numbers (``3``), reflectance (``0.0003``), or a share of the noise (``noise/4``).
        scale: digital number of reflectance 1.

    Raises:
        ValueError: it is none of them, or reflectance below one digital number.
    """
    if re.fullmatch(r"0?\.\d+", text):
        numbers = int(float(text) * scale + 1e-6)
        if not numbers:
            raise ValueError(f"'{text}': less than one digital number, which is a reflectance of {1 / scale:g}")
        text = str(numbers)
    _divisor(text)
    return text


class BoundedPredictor(PixelwiseCodec):
    """numcodecs codec for int16 tiles (bands, height, width) with a bound on the error of every pixel.

    Args:
        max_error: the bound: digital numbers (``3``), or a share of each band's noise (``noise/4``).
        blocks: whether to compress planes in independent blocks (frames.py), which versions before can't read.

    Raises:
        ValueError: the bound is neither.
    """

    codec_id, magic, numbers = "bounded_predictor", b"SPRB", COEFFICIENTS + 1

    def __init__(self, max_error: int | str, blocks: bool = False) -> None:
        super().__init__(pack_low=True, blocks=blocks)
        self.max_error = str(max_error)
        self._divisor = _divisor(self.max_error)

    def encode(self, tile: np.ndarray) -> bytes:
        """Pack an int16 tile (bands, height, width); raises ValueError for other dtypes or ranks, or an empty tile."""
        from shards.format import bounded_kernels

        tile = checked(tile)
        flat = tile.reshape(len(tile), -1)
        low, high = buffer("low", flat.shape), buffer("high", flat.shape)
        units = fit(flat, tile.shape[2])
        if self._divisor is None:
            bounds = np.full(len(flat), int(self.max_error), np.int16)
        else:
            bounds = np.minimum(noise(flat, tile.shape[2], units) / self._divisor, MOST_ERROR).astype(np.int16)
        bounded_kernels.difference(flat, units, bounds, np.int16(NODATA), BLOCK, low, high)
        return self._join(tile.shape, np.column_stack([units, bounds]), low, high)

    def decode(self, data: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Unpack into ``out``, int16 (bands, height, width), C-contiguous, or into a new array, and return it.

        Raises:
            ShardError: if the bytes do not hold a tile of this shape.
            ValueError: if ``out`` can't be filled in place.
        """
        from shards.format import bounded_kernels

        out, flat, planes = self._split(data, out)
        units, bounds = np.ascontiguousarray(planes.numbers[:, :COEFFICIENTS]), planes.numbers[:, COEFFICIENTS].copy()
        bounded_kernels.restore(planes.low, planes.high, planes.rows, units, bounds, np.int16(NODATA), BLOCK, flat)
        return out

    def bounds(self, data: Any) -> np.ndarray:
        """Return the bound of each band in digital numbers, int64 (bands,); raises ShardError for damaged bytes."""
        return self.numbers_of(data)[:, COEFFICIENTS].astype(np.int64)

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "max_error": self.max_error} | ({"blocks": True} if self.blocks else {})

    def _parts(self, content: np.ndarray) -> tuple[tuple[int, int, int], tuple[np.ndarray, ...]]:
        shape, parts = super()._parts(content)
        if (parts[0][:, COEFFICIENTS] < 0).any():
            raise ShardError("does not decode: a bound is negative")
        return shape, parts


register_codec(BoundedPredictor)


def noise(flat: np.ndarray, width: int, units: np.ndarray) -> np.ndarray:
    """Estimate the standard deviation of each band's noise in digital numbers, float64 (bands,).

    A residual has the noise of its band and, weighted by their coefficients, of the bands below. Sums are exact and
    float64 operations in a fixed order, so the estimate is the same on every machine.

    Args:
        flat: int16 (bands, pixels).
        width: pixels in a row.
        units: int16 (bands, 4), coefficients of the prediction.
    """
    from shards.format import bounded_kernels
    from shards.format.kernels import SCALE

    counts = np.empty((len(flat), _HISTOGRAM), np.int64)
    bounded_kernels.count_residuals(flat, units, width, _SAMPLED_ROWS, np.int16(NODATA), counts)
    gain = np.sqrt(1.0 + ((units[:, :3] * np.float64(SCALE)) ** 2).sum(1))
    estimated = _medians(counts) / _NORMAL_MEDIAN / gain
    if len(flat) > _PREDICTED:
        estimated[:_PREDICTED] = estimated[_PREDICTED]
    else:
        estimated[:] = 0.0
    padded = np.pad(estimated, 1, mode="edge")
    return np.median([padded[:-2], estimated, padded[2:]], axis=0)


def _medians(counts: np.ndarray) -> np.ndarray:
    """Return the median of each histogram (n, values) of whole numbers, interpolated within a value; 0 if empty."""
    until = counts.cumsum(1)
    half = until[:, -1] / 2.0
    value = (until >= half[:, None]).argmax(1)
    of_value = counts[np.arange(len(counts)), value]
    share = (half - (until[np.arange(len(counts)), value] - of_value)) / np.maximum(of_value, 1)
    return np.maximum(value - 0.5 + share, 0.0) * (half > 0)


def _divisor(text: str) -> float | None:
    """Return the divisor of ``noise/DIVISOR``; None for a number of digital numbers."""
    if re.fullmatch(r"\d+", text) and 1 <= int(text) <= MOST_ERROR:
        return None
    match = _NOISE.fullmatch(text)
    if not match or not 1 <= float(match[1]) <= MOST_ERROR:
        raise ValueError(f"'{text}': give digital numbers from 1 to {MOST_ERROR}, or a share of the noise like noise/4")
    return float(match[1])
