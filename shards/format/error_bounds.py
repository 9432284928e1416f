"""The promise of a codec that changes values: every pixel within a bound, missing values and zeros exact."""

from typing import Any

import numpy as np
from numcodecs.abc import Codec

from shards.format.codec_registry import build_codec
from shards.format.manifest import Manifest
from shards.format.planes import same_codes
from shards.sensors.sensor import NODATA


def is_lossless(codec: Codec) -> bool:
    """Return whether a codec restores every value: others have a method ``bounds``."""
    return not hasattr(codec, "bounds")


def error_bounds(codec: Codec, data: Any) -> np.ndarray | int:
    """Return the largest error of each band of an encoded tile, int64 (bands,); 0 of a lossless codec."""
    return 0 if is_lossless(codec) else codec.bounds(data)


def violation(tile: np.ndarray, stored: np.ndarray, bounds: np.ndarray | int) -> str:
    """Describe the worst violation of the bounds of a tile; empty if there is none.

    Args:
        tile, stored: int16 (bands, height, width), before and after encoding.
        bounds: of `error_bounds`.
    """
    if tile.shape != stored.shape:
        return f"its shape is {stored.shape} instead of {tile.shape}"
    limits = np.broadcast_to(np.reshape(bounds, (-1, 1, 1)), tile.shape)
    exact = (tile == NODATA) | (stored == NODATA) | (tile == 0)
    excess = np.abs(tile.astype(np.int32) - stored) - np.where(exact, 0, limits)
    if (excess <= 0).all():
        return ""
    band, row, column = np.unravel_index(int(excess.argmax()), tile.shape)
    values = f"{stored[band, row, column]} instead of {tile[band, row, column]}"
    return f"band {band + 1}, row {row}, column {column}: {values}, with a bound of {limits[band, row, column]}"


def max_error(manifest: Manifest) -> str:
    """Return the largest error of a dataset's pixels against the tiles that were packed; empty if there is none.

    It is a number of digital numbers (``3``), a share of each band's noise in the tile (``noise/4``), or a sum of both
    (``3 + noise/4``) if lossy shards were transcoded with another bound.
    """
    terms = manifest.made_from.max_error.split(" + ") if manifest.made_from else []
    codec = build_codec(manifest.codec)
    if not is_lossless(codec) and not _has_codes_of_origin(manifest, codec):
        terms.append(str(manifest.codec.get("max_error", f"the bound of {codec.codec_id}")))
    numbers = [int(term) for term in terms if term.isdecimal()]
    shares = [term for term in terms if term and not term.isdecimal()]
    return " + ".join(([str(sum(numbers))] if numbers else []) + shares)


def describe_max_error(text: str) -> str:
    """Return a bound of `max_error` with its unit; "none, lossless" for an empty one."""
    if not text:
        return "none, lossless"
    return f"{text} digital numbers" if text.isdecimal() else f"{text}, by band and tile"


def _has_codes_of_origin(manifest: Manifest, codec: Codec) -> bool:
    """Return whether the tiles are those of another dataset, cut into other shards or compressed in another way."""
    if manifest.made_from is None or manifest.made_from.codec.get("id") != codec.codec_id:
        return False
    return manifest.made_from.codec == manifest.codec or same_codes(build_codec(manifest.made_from.codec), codec)
