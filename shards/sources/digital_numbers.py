"""Conversion of stored values to digital numbers: int16, reflectance x 10000, `NODATA` where nothing was measured.

The conversion of integers is exact: a value without an exact digital number is an error, never rounded, wrapped or
clipped. Only floating-point reflectance, from 0 to 1, is rounded to the nearest digital number; what int16 can't hold
of it, noise in bands of little light, is missing.
"""

from collections.abc import Sequence

import numpy as np

from shards.errors import TileError
from shards.sensors.sensor import NODATA

PER_REFLECTANCE = 10000.0
"""Digital number of reflectance 1."""

UNSCALED = 1 / PER_REFLECTANCE
"""The scale of files that already hold digital numbers."""

ROUNDING = 1e-6
"""Largest distance of a scaled value from an integer: decimal scales are not exact in binary."""

LARGEST = np.iinfo(np.int16).max
ADVICE = "store reflectance x 10000 as int16, with -32768 where nothing was measured"


def missing_pixels(stored: np.ndarray, nodata: Sequence[float | None]) -> np.ndarray | None:
    """Return where values are NaN or their band's nodata value, bool (bands, height, width); None if nowhere."""
    known = {value for value in set(nodata) if value is not None and not np.isnan(value)}
    missing = None
    if len(known) == 1 and None not in nodata:
        missing = stored == _as_stored(known.pop(), stored.dtype)
    elif known:
        missing = np.zeros(stored.shape, dtype=bool)
        for band, value in enumerate(nodata):
            if value is not None:
                missing[band] = stored[band] == _as_stored(value, stored.dtype)
    if stored.dtype.kind == "f":
        not_numbers = np.isnan(stored)
        missing = not_numbers if missing is None else missing | not_numbers
    return missing if missing is not None and missing.any() else None


def _as_stored(value: float, dtype: np.dtype) -> float:
    """Return a nodata value as pixels store it: GDAL reports the lowest float32 as a double."""
    if dtype.kind != "f":
        return value
    with np.errstate(over="ignore"):
        return float(dtype.type(value))


def digital_numbers(
    stored: np.ndarray,
    missing: np.ndarray | None,
    scales: np.ndarray,
    offsets: np.ndarray,
    bands: Sequence[int],
    rounded: bool = False,
) -> np.ndarray:
    """Convert stored values to digital numbers; reflectance is ``stored * scale + offset``.

    Args:
        stored: (bands, height, width), integers or floats.
        missing: bool, broadcastable to the shape of ``stored``; None if no value is missing.
        scales, offsets: float64, one for each band.
        bands: band numbers, for messages.
        rounded: round values to the nearest digital number, and leave out those beyond int16; by default, both are
            errors.

    Returns:
        int16 (bands, height, width), C-contiguous.

    Raises:
        TileError: the dtype is not supported, or a value does not convert to an integer in the range of int16.
    """
    if not scales.all() or not np.isfinite(scales + offsets).all():
        raise TileError("a scale of 0, or a scale or offset that is not a number, in its tags: correct it or remove it")
    plain = bool((scales == UNSCALED).all()) and not offsets.any()
    _check_type(stored.dtype, plain)
    if plain and stored.dtype == np.int16:
        values = stored
    else:
        values = _converted(stored, missing, scales, offsets, plain, bands, rounded)
    if missing is not None:
        values = np.where(missing, np.int16(NODATA), values)
    return np.ascontiguousarray(values)


def _check_type(dtype: np.dtype, plain: bool) -> None:
    if dtype.kind not in "iuf":
        raise TileError(f"dtype {dtype}: pixels are not real numbers; {ADVICE}")
    if dtype.itemsize == 1 and plain:
        raise TileError(f"dtype {dtype}: 8 bits can't hold reflectance x 10000, is this a picture? {ADVICE}")


def _converted(
    stored: np.ndarray,
    missing: np.ndarray | None,
    scales: np.ndarray,
    offsets: np.ndarray,
    plain: bool,
    bands: Sequence[int],
    rounded: bool,
) -> np.ndarray:
    if plain:
        values = stored if stored.dtype.kind == "f" else stored.astype(np.int64)
    else:
        factor, shift = (part.reshape(-1, 1, 1) * PER_REFLECTANCE for part in (scales, offsets))
        values = stored.astype(np.float64) * factor + shift
    if missing is not None:
        values = np.where(missing, 0, values)
    whole = np.rint(values) if values.dtype.kind == "f" else values
    with np.errstate(invalid="ignore"):
        wrong = ~((whole >= NODATA) & (whole <= LARGEST))
        if values.dtype.kind == "f" and not rounded:
            wrong |= np.abs(values - whole) > (0 if plain else ROUNDING * np.maximum(1, np.abs(values)))
    if rounded:
        whole = np.where(wrong, NODATA, whole)
    elif wrong.any():
        band, row, column = (int(index) for index in np.unravel_index(wrong.argmax(), wrong.shape))
        raise TileError(
            _refusal(
                stored[band, row, column], values[band, row, column], scales[band], offsets[band], plain, bands[band]
            )
        )
    return whole.astype(np.int16)


def _refusal(value: float, number: float, scale: float, offset: float, plain: bool, band: int) -> str:
    why = "is beyond int16" if not np.isfinite(number) or abs(number) > LARGEST else "is not a whole number"
    if plain:
        return f"value {value:g} in band {band} {why}: {ADVICE}"
    scaled = f"with its scale {scale:g} and offset {offset:g} makes {number:g}, which"
    return f"value {value:g} in band {band} {scaled} {why}: {ADVICE}"
