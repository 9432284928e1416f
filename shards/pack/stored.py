"""The samples of finished shards with their metadata and labels, read front to back from a folder or URL."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ShardError
from shards.files.storage import Storage, open_storage
from shards.format import table
from shards.format.manifest import MANIFEST, Manifest, ShardIndex, TileColumns, parse_json, read_manifest
from shards.format.tar_members import Member
from shards.pack.writer import checksum, index_path

CHUNK = 8 << 20
"""Bytes that are read and hashed at a time."""

_SPANS = ("offset", "length", "checksum")
ROW = [name for name in TileColumns.model_fields if not name.endswith(_SPANS)]
"""Columns of the tile table that describe a tile rather than where it is stored."""


@dataclass(frozen=True)
class StoredSample:
    """The members of a sample as they are stored: encoded tile, description, and ``.npy`` of the label tile or b""."""

    row: dict[str, Any]
    tile: bytes
    description: bytes
    mask: bytes


class StoredDataset:
    """A finished folder of shards.

    Args:
        location: folder or URL.

    Raises:
        ShardError: if it is unfinished or damaged.
    """

    def __init__(self, location: str) -> None:
        self.location, self.storage = location, open_storage(location)
        is_url = "://" in location
        self.manifest = self._remote_manifest() if is_url else read_manifest(Path(location))

    def _remote_manifest(self) -> Manifest:
        return parse_json(self.storage.read(MANIFEST), Manifest, f"{self.storage.url}/{MANIFEST}")

    def index(self, number: int) -> ShardIndex:
        """Return the index of a shard; raises ShardError if it is not the one that the manifest names."""
        entry = self.manifest.shards[number]
        name = index_path(Path(entry.name)).name
        data, where = self.storage.read(name), f"{self.storage.url}/{name}"
        if hashlib.sha256(data).hexdigest() != entry.index_sha256:
            raise ShardError(f"{where}: not the index that the manifest names: damaged; restore it")
        return parse_json(data, ShardIndex, where)

    def location_ids(self) -> np.ndarray:
        """Return the location number of each tile in stored order, u4; raises ShardError for a damaged table."""
        where, data = f"{self.storage.url}/{self.manifest.table}", self.storage.read(self.manifest.table)
        if hashlib.sha256(data).hexdigest() != self.manifest.table_sha256:
            raise ShardError(f"{where}: not the table that the manifest names: damaged; restore it")
        return table.from_bytes(data, where)["location_id"]

    def check_hash(self, number: int) -> None:
        """Raise ShardError if the bytes of a shard are not those that the manifest names."""
        entry, digest = self.manifest.shards[number], hashlib.sha256()
        chunk = memoryview(bytearray(min(CHUNK, entry.size)))
        for begin in range(0, entry.size, CHUNK):
            piece = chunk[: entry.size - begin]
            self.storage.read_into(entry.name, begin, piece)
            digest.update(piece)
        if digest.hexdigest() != entry.sha256:
            where = f"{self.storage.url}/{entry.name}"
            raise ShardError(f"{where}: its SHA-256 differs from the manifest's: damaged; copy or pack it again")

    def close(self) -> None:
        self.storage.close()


def read_samples(storage: Storage, index: ShardIndex, rows: range) -> Iterator[StoredSample]:
    """Yield samples of a shard, each of them in one read.

    Args:
        rows: rows of the index.

    Raises:
        ShardError: if a tile or label fails its checksum, or the members are not those that `pack` writes.
    """
    columns = index.tiles
    for row in rows:
        begin = columns.offset[row]
        end = columns.offset[row + 1] if row + 1 < len(columns.key) else index.size
        where = f"{storage.url}/{index.shard}: tile '{columns.key[row]}' at byte {begin}"
        if end < begin + columns.length[row]:
            raise ShardError(f"{where}: another tile begins within it; these tars were not written by `pack`")
        span = memoryview(bytearray(end - begin))
        storage.read_into(index.shard, begin, span)
        tile = bytes(span[: columns.length[row]])
        if checksum(tile) != columns.checksum[row]:
            raise ShardError(f"{where}: fails its checksum: damaged; copy or pack it again")
        try:
            description, mask = _read_rest(span[_padded(len(tile)) :], columns, row)
        except (tarfile.TarError, ValueError) as error:
            raise ShardError(f"{where}: {error}: damaged, or tars that `pack` did not write") from None
        yield StoredSample({name: getattr(columns, name)[row] for name in ROW}, tile, description, mask)


def _read_rest(span: memoryview, columns: TileColumns, row: int) -> tuple[bytes, bytes]:
    """Return the description and the label tile, the members that follow a tile; raises ValueError for others."""
    key, length = columns.key[row], columns.mask_length[row]
    with tarfile.open(fileobj=io.BytesIO(span), mode="r:", tarinfo=Member) as archive:
        description = _read_member(archive, f"{key}.json")
        mask = _read_member(archive, f"{key}.mask.npy") if length else b""
    if length and (len(mask), checksum(mask)) != (length, columns.mask_checksum[row]):
        raise ValueError("its label fails its checksum")
    return description, mask


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.next()
    file = archive.extractfile(member) if member and member.name == name else None
    if file is None:
        raise ValueError(f"'{name}' does not follow it")
    return file.read()


def _padded(length: int) -> int:
    return -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
