"""Shards in any stock WebDataset pipeline: one decoder function. (WebDataset itself imports torch; this doesn't.)"""

from collections.abc import Callable

import numpy as np

from shards.format.codec_registry import build_codec
from shards.format.manifest import Manifest


def decoder(manifest: Manifest) -> Callable[[str, bytes], np.ndarray | None]:
    """Decoder of tiles: ``wds.WebDataset(urls, shardshuffle=False).decode(decoder(manifest))``.

    Tiles come out as int16 (bands, height, width) under ``"tile"``; other members are left to WebDataset's own
    decoders, so that ``"json"`` is a dict and ``"mask.npy"`` an array. Raises ShardError for damaged bytes.
    """
    codec = build_codec(manifest.codec)

    def decode(key: str, data: bytes) -> np.ndarray | None:
        if key.rsplit(".", 1)[-1] != "tile":
            return None
        return codec.decode(data, np.empty(manifest.tile_shape, dtype=np.int16))

    return decode
