"""Planned reads: tile rows in, int16 values out, decoded by threads straight into the caller's buffer."""

import hashlib
import os
import resource
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np

from shards.codec import build_codec
from shards.errors import ShardError
from shards.manifest import Manifest, ShardIndex, read_json, read_manifest
from shards.writer import index_path


class ShardReader:
    """Random access to the tiles of a shard folder.

    Args:
        folder: what `pack` made.
        threads: that read and decode; both release the GIL.

    Attributes:
        manifest: the dataset's description.
        keys, locations: per tile row, in stored order.

    Raises:
        ShardError: a file is missing, cut short or damaged; the line names it.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self.keys: list[str] = []
        self.locations: list[str] = []
        shard, offset, length, crc = [], [], [], []
        for number, entry in enumerate(self.manifest.shards):
            index = self._checked_index(number)
            self.keys += index.key
            self.locations += index.location
            shard += [number] * entry.tiles
            offset += index.offset
            length += index.length
            crc += index.crc32c
        self._shard, self._offset, self._length, self._crc = shard, offset, length, crc
        self._codec = build_codec(self.manifest.codec)
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shard-reader") if threads > 1 else None
        _allow_many_files(len(self.manifest.shards))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """(bands, height, width)."""
        bands, height, width = self.manifest.tile_shape
        return bands, height, width

    def read(self, rows: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """Decode tiles into ``out``, int16 (len(rows), bands, height, width), C-contiguous.

        Raises:
            ShardError: a tile's bytes are not what was written; the line names shard and key.
        """
        if len(rows) != len(out):
            raise ValueError(f"{len(rows)} rows for a buffer of {len(out)} tiles")
        if self._pool is None:
            for row, target in zip(rows, out, strict=True):
                self._read_one(int(row), target)
        else:
            for _ in self._pool.map(self._read_one, map(int, rows), out):
                pass

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _read_one(self, row: int, out: np.ndarray) -> None:
        shard = self._shard[row]
        encoded = os.pread(self._file(shard), self._length[row], self._offset[row])
        where = f"{self.folder / self.manifest.shards[shard].name}: tile '{self.keys[row]}'"
        if len(encoded) != self._length[row]:
            raise ShardError(f"{where} is cut short: the file was changed; pack it again")
        if google_crc32c.value(encoded) != self._crc[row]:
            raise ShardError(f"{where} fails its checksum: the file was damaged; pack it again")
        try:
            self._codec.decode(encoded, out=out)
        except ShardError as error:
            raise ShardError(f"{where}: {error}") from None

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                path = self.folder / self.manifest.shards[shard].name
                try:
                    self._files[shard] = os.open(path, os.O_RDONLY)
                except OSError as error:
                    raise ShardError(f"{path}: can't be opened: {error.strerror}") from None
            return self._files[shard]

    def _checked_index(self, number: int) -> ShardIndex:
        entry = self.manifest.shards[number]
        tar = self.folder / entry.name
        path = index_path(tar)
        index = read_json(path, ShardIndex)
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry.index_sha256:
            raise ShardError(f"{path}: not the index that the manifest names; pack again")
        size = tar.stat().st_size if tar.exists() else -1
        if size != entry.size:
            state = "missing" if size < 0 else f"{size} bytes where {entry.size} were written"
            raise ShardError(f"{tar}: {state}; copy or pack it again")
        return index


class TileDataset:
    """A folder of shards as a sequence: ``dataset[i]`` is tile i, int16 (bands, height, width)."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self.manifest, self.keys = reader.manifest, reader.keys

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(f"tile {row} of {len(self)}")
        out = np.empty((1, *self.reader.tile_shape), dtype=np.int16)
        self.reader.read([row % len(self)], out)
        return out[0]


def open_dataset(folder: str | Path, threads: int = 1) -> TileDataset:
    """Open what `pack` made, for notebooks; raises ShardError where something is missing or damaged."""
    return TileDataset(ShardReader(Path(folder), threads))


def webdataset_decoder(manifest: Manifest) -> Callable[[str, bytes], np.ndarray | None]:
    """Decoder for any stock pipeline: ``wds.WebDataset(urls).decode(webdataset_decoder(manifest))``.

    Tiles come out as int16 (bands, height, width); other members are left to WebDataset's own decoders.
    """
    codec = build_codec(manifest.codec)

    def decode(key: str, data: bytes) -> np.ndarray | None:
        if not key.endswith("tile"):
            return None
        return codec.decode(data, out=np.empty(manifest.tile_shape, dtype=np.int16))

    return decode


def _allow_many_files(count: int) -> None:
    """Every shard stays open; raise the soft limit of open files towards the hard one where that is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = count + 256
    if soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need if hard == resource.RLIM_INFINITY else min(need, hard), hard))
