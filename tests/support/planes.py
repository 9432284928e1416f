"""Tiles as a loader sends them to a device that undoes their prediction, and as the CPU decodes them."""

from collections.abc import Sequence

import numpy as np
import torch
from numcodecs.abc import Codec
from torch import Tensor

from shards.format.planes import BOUND, COLUMNS, VALUES, PixelwiseCodec


def unpacked(codecs: Sequence[Codec], tiles: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Return planes int16 (U, C, H, W) and numbers int32 (U, C, COLUMNS), and the tiles that the codecs decode."""
    planes = np.full((len(tiles), *tiles[0].shape), 0x5A5A, np.int16)  # what was there before mustn't matter
    bands, decoded = np.zeros((len(tiles), len(tiles[0]), COLUMNS), np.int32), np.empty_like(planes)
    for number, (codec, tile) in enumerate(zip(codecs, tiles, strict=True)):
        encoded = codec.encode(tile)
        codec.decode(encoded, decoded[number])
        if isinstance(codec, PixelwiseCodec):
            bands[number] = codec.unpack(encoded, planes[number])
        else:
            planes[number], bands[number, :, BOUND] = tile, VALUES
    return torch.from_numpy(planes), torch.from_numpy(bands), torch.from_numpy(decoded)
