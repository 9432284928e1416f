"""The tile table: one row per tile, in numpy columns, so that half a million tiles open in well under a second.

Each shard's index contains its rows as JSON (used by `pack` to restart); the dataset's table joins them in one
``.npy`` file, the only one that a reader loads. Both have the same columns, which are defined here.
"""

import io
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
from numpy.lib.recfunctions import rename_fields

from shards.errors import ShardError

QUALITY = ("cloud", "cloud_shadow", "haze", "cirrus", "snow", "nodata")
"""Fractions of a tile's pixels in [0, 1], from the product's quality layers; NaN if unknown."""

TEXT = ("key", "location", "timestamp", "scene", "split")
NUMBERS = {
    "offset": "u8",  # bytes from the start of the tar to the encoded tile
    "length": "u4",  # bytes of the encoded tile
    "checksum": "u8",  # XXH3-64 of those bytes
    "mask_offset": "u8",  # the same for the label tile; length 0 if there is none
    "mask_length": "u4",
    "mask_checksum": "u8",
    "lon": "f4",  # of the tile's center, degrees, WGS 84; NaN if unknown
    "lat": "f4",
    "date": "M8[D]",  # day of the acquisition; NaT if unknown
    **dict.fromkeys(QUALITY, "f4"),
}
COLUMNS = (*TEXT, *NUMBERS)
STORED_NAMES = {"place": "location_id"}
"""Columns with a different name in the file, which keeps the names of earlier versions."""


def join(shards: Sequence[dict[str, list[Any]]], numbers: Sequence[int]) -> np.ndarray:
    """Join the shards' rows in order into one structured array.

    Args:
        shards: columns of each shard (``COLUMNS``), as in its index.
        numbers: each shard's position in the manifest.

    Returns:
        The columns, and ``shard`` (u4) and ``location_id`` (u4, numbered in order of appearance). Text columns are
        bytes as wide as their longest entry.

    Raises:
        ShardError: if an index contains an invalid value: not a date, or text that is not valid Unicode.
    """
    columns: dict[str, np.ndarray] = {}
    for name in (*TEXT, *NUMBERS):
        try:
            columns[name] = _column(name, [value for shard in shards for value in shard[name]])
        except (ValueError, OverflowError, TypeError) as error:
            raise ShardError(f"column '{name}' of the indexes: {error}; index or pack the shards again") from None
    columns["shard"] = np.repeat(np.asarray(numbers, dtype="u4"), [len(shard["key"]) for shard in shards])
    columns["location_id"] = _location_ids(columns["location"])
    table = np.empty(len(columns["key"]), dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return table


def _column(name: str, values: list[Any]) -> np.ndarray:
    if name in TEXT:
        texts = [text.encode() for text in values]
        if any(text.endswith(b"\0") for text in texts):
            raise ValueError("text that ends with a NUL character")  # numpy would drop it
        return np.asarray(texts, dtype=f"S{max(map(len, texts), default=0) or 1}")
    if NUMBERS[name] == "M8[D]":
        values = [date.fromisoformat(value) if value else None for value in values]  # numpy also takes "today"
    return np.asarray(values, dtype=NUMBERS[name])  # None becomes NaN or NaT


def _location_ids(locations: np.ndarray) -> np.ndarray:
    """Return the number of each row's location, u4, starting at 0 in order of appearance."""
    if not len(locations):
        return np.zeros(0, dtype="u4")
    _, first, inverse = np.unique(locations, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype="u4")
    rank[np.argsort(first, kind="stable")] = np.arange(len(first), dtype="u4")
    return rank[inverse]


def to_bytes(table: np.ndarray) -> bytes:
    """Return a table as the bytes of a ``.npy`` file; no pickle, equal rows give equal bytes."""
    buffer = io.BytesIO()
    table = rename_fields(table, {new: old for old, new in STORED_NAMES.items()})
    np.lib.format.write_array(buffer, table, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def from_bytes(data: bytes, name: str) -> np.ndarray:
    """Return the table in ``.npy`` bytes, read-only; raises ShardError naming ``name`` if they hold none."""
    try:
        file = io.BytesIO(data)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of .npy")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if len(shape) != 1 or not 0 <= shape[0] * dtype.itemsize <= len(data) or not _are_columns(dtype):
            raise ValueError("other columns or rows")
        stored = np.frombuffer(data, dtype=dtype, count=shape[0], offset=file.tell())
        return rename_fields(stored, STORED_NAMES)
    except Exception as error:  # numpy parses the header as Python: damage can raise any error
        raise ShardError(
            f"{name}: not a tile table ({type(error).__name__}); run `python -m shards merge` on its folder"
        ) from None


def _are_columns(dtype: np.dtype) -> bool:
    """Return whether a dtype has all columns with the right types; text can have any width."""
    kinds = {**NUMBERS, "shard": "u4", "place": "u4"}
    if dtype.hasobject or not {*TEXT, *kinds} <= set(dtype.names or ()):
        return False
    return all(dtype[name] == np.dtype(kind) for name, kind in kinds.items()) and all(
        dtype[name].kind == "S" for name in TEXT
    )


def check_spans(table: np.ndarray, sizes: Sequence[int]) -> None:
    """Raise ValueError unless every row lies within its shard; ``sizes`` are the shard sizes in bytes."""
    if not len(table):
        return
    if int(table["shard"].max()) >= len(sizes):
        raise ValueError(f"a tile in shard {int(table['shard'].max())} of {len(sizes)}")
    size = np.asarray(sizes, dtype="u8")[table["shard"]]
    for prefix in ("", "mask_"):
        offset, length = table[prefix + "offset"], table[prefix + "length"]
        beyond = (length > size) | (offset > size - np.minimum(length, size))
        if beyond.any():
            raise ValueError(f"row {int(beyond.argmax())} lies beyond the end of its shard")
