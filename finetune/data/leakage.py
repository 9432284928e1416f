"""Leakage: test tiles from scenes that the encoder was pretrained on."""

from finetune.data.items import Item
from shards.read.reader import ShardReader


def seen_in_pretraining(shards: str | None, tiles: list[Item]) -> list[bool] | None:
    """Return whether each tile's scene is in the pretraining shards; None if no shards are given.

    Raises:
        ShardError: the location holds no shards.
    """
    if shards is None:
        return None
    table = ShardReader(shards).table
    scenes = {value.decode() for field in ("scene", "timestamp") for value in table[field]} - {""}
    return [tile.scene in scenes for tile in tiles]
