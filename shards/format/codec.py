"""The lossless tile codec: least-squares prediction of each band from the three below it, and packed residuals.

A spectrum is smooth, so three bands predict the next one to within its noise. The coefficients are fitted to each tile
and band and stored with it. Residuals are taken modulo 2**16, so every int16 value is preserved; their zig-zag codes
are split into a plane of low bytes and one of high bytes (shards/format/planes.py). `RowPredictor` makes smaller files.
A fourth band makes files 1 % smaller and decoding 10 % slower (`tools/bench_codec.py` measures the codec).
"""

from typing import Any

import numpy as np
from numcodecs import register_codec
from numcodecs.abc import Codec

from shards.errors import ShardError
from shards.format.least_squares import COEFFICIENTS, fit
from shards.format.planes import BLOCK, PixelwiseCodec, buffer, checked, writable


class SpectralPredictor(PixelwiseCodec):
    """numcodecs codec for int16 tiles (bands, height, width).

    Args:
        pack_low: whether to compress the plane of low bytes too: 25 % smaller, 2.5 times slower to decode.
        blocks: whether to compress planes in independent blocks (frames.py), which versions before can't read.
    """

    codec_id, magic, numbers = "spectral_predictor", b"SPRD", COEFFICIENTS

    def encode(self, tile: np.ndarray) -> bytes:
        """Pack an int16 tile (bands, height, width); raises ValueError for other dtypes or ranks, or an empty tile."""
        from shards.format import kernels  # importing compiled code takes 0.3 s

        tile = checked(tile)
        flat = tile.reshape(len(tile), -1)
        low, high = buffer("low", flat.shape), buffer("high", flat.shape)
        units = fit(flat, tile.shape[2])
        kernels.difference(flat, units, low, high)
        return self._join(tile.shape, units, low, high)

    def decode(self, data: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Unpack into ``out``, int16 (bands, height, width), C-contiguous, or into a new array, and return it.

        Raises:
            ShardError: if the bytes do not hold a tile of this shape.
            ValueError: if ``out`` can't be filled in place.
        """
        from shards.format import kernels

        out, flat, planes = self._split(data, out)
        kernels.restore(planes.low, planes.high, planes.rows, planes.numbers, flat, BLOCK)
        return out


class RawTile(Codec):
    """numcodecs codec that stores int16 values unchanged, little-endian, so that reads need no copy."""

    codec_id, most = "raw_tile", 1

    def encode(self, tile: np.ndarray) -> bytes:
        """Return the bytes of an int16 tile (bands, height, width); raises ValueError for other dtypes or ranks."""
        return checked(tile).astype("<i2").tobytes()

    def decode(self, data: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Copy into ``out``, int16, C-contiguous; without it return a flat array, since the shape is not stored."""
        values = np.frombuffer(data, dtype=np.uint8)
        if out is None:
            return values.copy().view("<i2")
        target = writable(out)
        if values.size != target.nbytes:
            raise ShardError(f"holds {values.size} bytes, expected {target.nbytes}")
        target.reshape(-1).view(np.uint8)[:] = values
        return out


register_codec(SpectralPredictor)
register_codec(RawTile)
