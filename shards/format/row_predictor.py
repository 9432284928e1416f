"""The lossless tile codec for the smallest files: the prediction from the bands below, corrected by the row above.

Each band is predicted from the three below it, as in `SpectralPredictor`. What this prediction misses is similar in the
row above, and is correlated with the residuals of the same pixel in the bands below. A weighted sum of both corrects
it; the weights are fitted to each tile and band, and stored with it. Rows are restored one after the other, and the
pixels of a row at the same time: the pixel on the left would predict as well, but would have to be waited for.
"""

from typing import Any

import numpy as np
from numcodecs import register_codec

from shards.format.least_squares import COEFFICIENTS, WEIGHTS, fit
from shards.format.planes import BLOCK, PlaneCodec, buffer, checked
from shards.sensors.sensor import NODATA


class RowPredictor(PlaneCodec):
    """numcodecs codec for int16 tiles (bands, height, width).

    Args:
        pack_low: whether to compress the plane of low bytes too.
        blocks: whether to compress planes in independent blocks (frames.py).
    """

    codec_id, magic, numbers = "row_predictor", b"SPRR", COEFFICIENTS + WEIGHTS

    def encode(self, tile: np.ndarray) -> bytes:
        """Pack an int16 tile (bands, height, width); raises ValueError for other dtypes or ranks, or an empty tile."""
        from shards.format import row_kernels  # importing compiled code takes 0.3 s

        tile = checked(tile)
        flat = tile.reshape(len(tile), -1)
        low, high = buffer("low", flat.shape), buffer("high", flat.shape)
        numbers = np.zeros((len(tile), self.numbers), np.int16)
        numbers[:, :COEFFICIENTS] = fit(flat, tile.shape[2])
        row_kernels.difference(tile, numbers, np.int16(NODATA), low.reshape(tile.shape), high.reshape(tile.shape))
        return self._join(tile.shape, numbers, low, high)

    def decode(self, data: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Unpack into ``out``, int16 (bands, height, width), C-contiguous, or into a new array, and return it.

        Raises:
            ShardError: if the bytes do not hold a tile of this shape.
            ValueError: if ``out`` can't be filled in place.
        """
        from shards.format import row_kernels

        out, flat, planes = self._split(data, out)
        _, height, width = planes.shape
        low, high, tile = (plane.reshape(-1, height, width) for plane in (planes.low, planes.high, flat))
        row_kernels.restore(low, high, planes.rows, planes.numbers, max(1, BLOCK // width), tile)
        return out


register_codec(RowPredictor)
