"""Packed datasets as a reader sees them: keys, tiles, refusals, and whether files were written again."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardError
from shards.read.reader import ShardReader


def keys_of(reader: ShardReader) -> list[str]:
    """Return the keys of all rows."""
    return [reader.key(row) for row in range(len(reader))]


def read_rows(reader: ShardReader, rows: Sequence[int]) -> np.ndarray:
    """Return int16 tiles (rows, bands, height, width); what the reader leaves out would be 12345."""
    out = np.full((len(rows), *reader.tile_shape), 12345, np.int16)
    reader.read(rows, out)
    return out


def read_all(folder: Path) -> dict[str, np.ndarray]:
    """Return every tile of a dataset by its key."""
    reader = ShardReader(folder)
    tiles = dict(zip(keys_of(reader), read_rows(reader, range(len(reader))), strict=True))
    reader.close()
    return tiles


def assert_reads(reader: ShardReader, values: Mapping[str, np.ndarray]) -> None:
    """Compare every tile with the values of its key."""
    for key, tile in zip(keys_of(reader), read_rows(reader, range(len(reader))), strict=True):
        np.testing.assert_array_equal(tile, values[key])


def refusal(action: Callable[[], object]) -> str:
    """Return the one-line ShardError that the action raises."""
    with pytest.raises(ShardError) as caught:
        action()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of each file; both stay when a file is not written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
