"""Planned reads: threads decode the int16 values of given tile rows directly into the caller's buffer."""

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from shards.config import check_config
from shards.errors import ConfigError, ShardError
from shards.files.stage import StagedFile, StagedStorage
from shards.files.storage import LocalStorage, Storage, open_storage
from shards.files.untrusted import read_npy
from shards.format import table
from shards.format.codec import RawTile
from shards.format.codec_registry import build_codec
from shards.format.manifest import MANIFEST, Manifest, parse_json, read_manifest
from shards.format.planes import BOUND, MOST, VALUES, PixelwiseCodec, PlaneCodec
from shards.order.selection import ViewConfig
from shards.order.view import view_rows
from shards.read.quarantine import Quarantine, read_all

_PIECE = 512 << 10
"""Bytes that are read and hashed at a time, so that they are hashed while still in the CPU cache."""

_PACKED = 16
"""Size ratio between a tile and its stored bytes above which sizes are validated before memory is allocated."""


class ShardReader:
    """Random access to the tiles of a shard folder.

    Args:
        location: a folder written by `pack`, or any URL of one that fsspec can read by ranges.
        threads: number of threads that read and decode; both release the GIL.
        stage: node-local folder for copies of the shards; shared by the processes of a node.
        stage_quota: maximum bytes of the copies.
        verify: whether to compare the bytes of every tile with their checksum.

    Attributes:
        manifest: description of the dataset.
        table: tile table, one row per tile in stored order (shards/format/table.py).

    Raises:
        ShardError: if a file is missing, truncated or damaged; the message names it.
    """

    def __init__(
        self,
        location: str | Path,
        threads: int = 1,
        stage: Path | None = None,
        stage_quota: int | None = None,
        verify: bool = True,
    ) -> None:
        self.location = str(location)
        self.verify = verify
        self._storage: Storage = open_storage(location)
        self._url = self._storage.url.rstrip("/")  # for messages: without a password
        self.manifest = self._read_manifest()
        self._codec = build_codec(self.manifest.codec)
        self._names = [entry.name for entry in self.manifest.shards]
        self.table = self._read_table()
        if stage is not None:
            self.stage(stage, stage_quota)
        self._scratch = threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shard-reader") if threads > 1 else None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """Shape of a tile, (bands, height, width)."""
        bands, height, width = self.manifest.tile_shape
        return bands, height, width

    @property
    def nbytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(entry.size for entry in self.manifest.shards)

    def stage(self, folder: Path, quota: int | None = None) -> None:
        """Read from node-local copies of the shards, see the arguments ``stage`` and ``stage_quota``."""
        files = [StagedFile(entry.name, entry.size, entry.sha256) for entry in self.manifest.shards]
        self._storage = StagedStorage(self._storage, folder / self.manifest.content_hash[:16], files, quota)

    def key(self, row: int) -> str:
        """Return the sample key of a tile row."""
        return self.table["key"][row].decode(errors="replace")

    def location_ids(self, rows: np.ndarray) -> np.ndarray:
        """Return the location number of each tile row, int64."""
        return self.table["location_id"][rows].astype(np.int64)

    def read(
        self, rows: Sequence[int] | np.ndarray, out: np.ndarray, quarantine: Quarantine | None = None
    ) -> list[int]:
        """Decode tiles into ``out``, int16 (len(rows), bands, height, width), C-contiguous.

        Args:
            quarantine: records bad tiles and provides a substitute for each; without it a bad tile is an error.

        Returns:
            The rows that were read: the requested ones, with substitutes for bad tiles.

        Raises:
            UnreachableError: if the storage did not respond for minutes.
            ShardError: if the bytes of a tile are not those written; the message names shard, key and offset.
        """
        self._check_fits(rows, out)
        return read_all(rows, self.read_tile, (out,), self._pool, self.key, quarantine)

    def read_planes(
        self,
        rows: Sequence[int] | np.ndarray,
        out: np.ndarray,
        bands: np.ndarray,
        quarantine: Quarantine | None = None,
    ) -> list[int]:
        """Read tiles without undoing their prediction, which a device can do (pretrain/data/restore.py).

        Args:
            out: receives the planes of each tile, see PixelwiseCodec.unpack, or its values if it has another codec.
            bands: int32 (len(rows), bands, COLUMNS); receives what a band needs to be restored.
            quarantine: as in `read`, like the results and errors.
        """
        self._check_fits(rows, out)
        return read_all(rows, self.read_tile_planes, (out, bands), self._pool, self.key, quarantine)

    def read_tile_planes(self, row: int, out: np.ndarray, bands: np.ndarray) -> None:
        """Read the planes of one tile; raises like `read` without a quarantine."""
        if isinstance(self._codec, PixelwiseCodec):
            bands[:] = self._decode(row, lambda data: self._codec.unpack(data, out))
        else:
            self.read_tile(row, out)
            bands[:, BOUND] = VALUES

    def read_tile(self, row: int, out: np.ndarray) -> None:
        """Decode one tile into ``out``, int16 of its shape, C-contiguous; raises like `read` without a quarantine."""
        if isinstance(self._codec, RawTile):  # read directly into the batch, without a copy in user space
            target = out.reshape(-1).view(np.uint8)
            if self.table["length"][row] != target.size:
                raise ShardError(f"{self._where(row)}: {self.table['length'][row]} bytes, but a tile has {target.size}")
            self._fetch(row, "", target)
            return
        self._decode(row, lambda data: self._codec.decode(data, out))

    def _check_fits(self, rows: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        if out.shape != (len(rows), *self.tile_shape) or out.dtype != np.int16 or not out.flags.c_contiguous:
            raise ValueError(f"{len(rows)} tiles of {self.tile_shape} int16 do not fit into {out.dtype} {out.shape}")

    def _decode(self, row: int, decode: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Call ``decode`` with the verified encoded bytes of a tile, which are valid during the call."""
        encoded = self._buffer(int(self.table["length"][row]))
        self._fetch(row, "", encoded)
        try:
            return decode(encoded)
        except ShardError as error:
            raise ShardError(f"{self._where(row)}: {error}") from None

    def read_mask(self, row: int) -> np.ndarray | None:
        """Return the label tile of a row, int16 (height, width), or None; raises ShardError like `read`."""
        length = int(self.table["mask_length"][row])
        if not length:
            return None
        data = np.empty(length, dtype=np.uint8)
        self._fetch(row, "mask_", data)
        where, shape = self._where(row, "mask_"), self.tile_shape[1:]
        try:
            mask = read_npy(data.tobytes())
        except ValueError as error:
            raise ShardError(f"{where}: does not decode: {error}") from None
        if mask.shape != shape:
            raise ShardError(f"{where}: a label tile of {mask.shape}, expected {shape}")
        return mask

    def read_encoded(self, row: int) -> np.ndarray:
        """Return the verified encoded bytes of a tile, uint8; raises ShardError like `read`."""
        data = np.empty(int(self.table["length"][row]), dtype=np.uint8)
        self._fetch(row, "", data)
        return data

    def prefetch(self, shards: Sequence[int]) -> None:
        """Start copying these shards to the node, in this order; no-op without staging."""
        if isinstance(self._storage, StagedStorage):
            self._storage.prefetch([self._names[shard] for shard in shards])

    @property
    def counters(self) -> dict[str, int]:
        """Counters of staging, for telemetry."""
        names = ("staged", "read_through", "evicted", "downloaded_bytes")
        return {name: getattr(self._storage, name) for name in names if hasattr(self._storage, name)}

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
        self._storage.close()

    def _fetch(self, row: int, prefix: str, buffer: np.ndarray) -> None:
        """Fill ``buffer`` with stored bytes and verify them; a bad node-local copy is dropped.

        Wrong bytes are read once more, since the error can be in the transfer.
        """
        name = self._names[self.table["shard"][row]]
        offset, expected = int(self.table[prefix + "offset"][row]), int(self.table[prefix + "checksum"][row])
        if self._read_and_check(name, offset, buffer, expected):
            return
        if isinstance(self._storage, StagedStorage):
            self._storage.discard(name)
        if self._read_and_check(name, offset, buffer, expected):
            return
        raise ShardError(f"{self._where(row, prefix)} fails its checksum: the file was damaged; copy or pack it again")

    def _read_and_check(self, name: str, offset: int, buffer: np.ndarray, expected: int) -> bool:
        """Fill ``buffer`` and return whether its checksum is right; True if verification is off."""
        view = memoryview(buffer)  # type: ignore[arg-type]
        if not self.verify:
            self._storage.read_into(name, offset, view)
            return True
        digest = xxhash.xxh3_64()
        step = _PIECE if isinstance(self._storage, LocalStorage) else max(len(view), 1)  # a remote read is one request
        for begin in range(0, len(view), step):
            piece = view[begin : begin + step]
            self._storage.read_into(name, offset + begin, piece)
            digest.update(piece)
        return digest.intdigest() == expected

    def _buffer(self, size: int) -> np.ndarray:
        """Return this thread's buffer for encoded bytes; it is reused, since fresh pages cost as much as the read."""
        buffer = getattr(self._scratch, "buffer", None)
        if buffer is None or buffer.size < size:
            buffer = self._scratch.buffer = np.empty(size + size // 4, dtype=np.uint8)
        return buffer[:size]

    def _where(self, row: int, prefix: str = "") -> str:
        name, offset = self._names[self.table["shard"][row]], self.table[prefix + "offset"][row]
        return f"{self._url}/{name}: {'label ' if prefix else ''}tile '{self.key(row)}' at byte {offset}"

    def _read_manifest(self) -> Manifest:
        if "://" not in self.location:
            return read_manifest(Path(self.location))
        return parse_json(self._storage.read(MANIFEST), Manifest, f"{self._url}/{MANIFEST}")

    def _read_table(self) -> np.ndarray:
        """Read the tile table, and check it and the shard sizes against the manifest."""
        path = f"{self._url}/{self.manifest.table}"
        data = self._storage.read(self.manifest.table)
        if hashlib.sha256(data).hexdigest() != self.manifest.table_sha256:
            raise ShardError(f"{path}: not the table that the manifest names: damaged; run `python -m shards merge`")
        self._check_shards()
        rows = table.from_bytes(data, path)
        try:
            table.check_spans(rows, [entry.size for entry in self.manifest.shards])
            if len(rows) != self.manifest.tiles:
                raise ValueError(f"{len(rows)} tiles, but the manifest lists {self.manifest.tiles}")
        except ValueError as error:
            raise ShardError(f"{path}: damaged: {error}; run `python -m shards merge` on its folder") from None
        self._check_tile_size(rows, path)
        return rows

    def _check_tile_size(self, rows: np.ndarray, path: str) -> None:
        """Check that the manifest's tile shape, which determines batch memory, is consistent with the stored tiles."""
        if not len(rows):
            return
        row, shape = int(rows["length"].argmax()), self.tile_shape
        longest, full_size = int(rows["length"][row]), 2 * math.prod(shape)
        fits = full_size <= longest * getattr(self._codec, "most", MOST)
        if fits and full_size > _PACKED * longest and isinstance(self._codec, PlaneCodec):
            data = np.empty(longest, dtype=np.uint8)  # constant tiles or a forged shape: the tile's header decides
            self._storage.read_into(self._names[rows["shard"][row]], int(rows["offset"][row]), memoryview(data))  # type: ignore[arg-type]
            try:
                fits = self._codec.shape_of(data) == shape
            except ShardError:
                pass  # a damaged tile is reported when it is read
        if not fits:
            raise ShardError(
                f"{self._url}/{MANIFEST}: damaged: tiles of {shape} don't come out of {longest} bytes, "
                "the most that is stored of one; restore it, or pack again"
            )
        if max(longest, int(rows["mask_length"].max())) > _PACKED * full_size + (1 << 20):
            raise ShardError(f"{path}: damaged: rows longer than any tile of {shape}; restore it")

    def _check_shards(self) -> None:
        """Check that every shard of a local folder has the right size, to fail now instead of hours later."""
        folder = Path(self.location)
        if not folder.is_dir():
            return  # remote: one request per shard would take minutes, and reads report errors too
        with os.scandir(folder) as files:
            sizes = {file.name: file.stat().st_size for file in files if file.name.endswith(".tar")}
        for entry in self.manifest.shards:
            size = sizes.get(entry.name)
            if size != entry.size:
                state = "missing" if size is None else f"{size} bytes, but {entry.size} were written"
                raise ShardError(f"{folder / entry.name}: {state}; copy or pack it again")


class TileDataset:
    """A folder of shards as a sequence: ``dataset[i]`` is tile i, int16 (bands, height, width)."""

    def __init__(self, reader: ShardReader, rows: np.ndarray) -> None:
        self.reader, self.rows = reader, rows
        self.manifest, self.table = reader.manifest, reader.table[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> np.ndarray:
        if not -len(self) <= position < len(self):
            raise IndexError(f"tile {position} of {len(self)}")
        out = np.empty((1, *self.reader.tile_shape), dtype=np.int16)
        self.reader.read([self.rows[position]], out)
        return out[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[position] for position in range(len(self)))

    def mask(self, position: int) -> np.ndarray | None:
        """Return the label codes of a tile, int16 (height, width), ``NODATA`` for unlabeled pixels; or None."""
        return self.reader.read_mask(int(self.rows[position]))


def open_dataset(location: str | Path, threads: int = 1, **view: object) -> TileDataset:
    """Open a dataset written by `pack` in a notebook, e.g. ``open_dataset(folder, max_cloud=0.05, split="train")``.

    Args:
        threads: number of threads that read and decode.
        view: conditions that tiles must meet, as text and numbers (shards/order/view.py).

    Raises:
        ShardError: if something is missing or damaged.
        ConfigError: if a condition is unknown, its value is invalid, or a list can't be read.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"open_dataset: threads is {threads!r}: give a whole number above 0")
    conditions = {key: str(value) if isinstance(value, Path) else value for key, value in view.items()}
    chosen = check_config(conditions, ViewConfig, "open_dataset")
    reader = ShardReader(location, threads)
    return TileDataset(reader, view_rows(chosen, reader.table))
