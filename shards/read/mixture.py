"""Reads from several datasets as one: rows are numbered through, and smaller tiles are padded."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shards.format.planes import BOUND, MISSING, VALUES
from shards.read.quarantine import Quarantine, read_all
from shards.read.reader import ShardReader
from shards.sensors.sensor import NODATA


class MixtureReader:
    """Random access to the tiles of several datasets, in place of a ShardReader.

    Rows, shards and locations of all sources are numbered one after the other. A tile with fewer bands or pixels than
    others lies in the first bands and the upper left corner of its place; the rest is NODATA.

    Args:
        readers: reader of each source, without threads of their own.
        names: name of each source, for messages.
        threads: number of threads that read and decode.

    Attributes:
        first_rows: row number of each source's first tile.
        first_shards: shard number of each source's first shard.
    """

    def __init__(self, readers: Sequence[ShardReader], names: Sequence[str], threads: int = 1) -> None:
        self.readers, self.names = readers, names
        self.first_rows = _begins(map(len, readers))
        self.first_shards = _begins(len(reader.manifest.shards) for reader in readers)
        self._first_locations = _begins(reader.manifest.locations for reader in readers)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shard-reader") if threads > 1 else None

    def __len__(self) -> int:
        return sum(map(len, self.readers))

    @property
    def location(self) -> str:
        """Folders or URLs of all sources."""
        return ", ".join(reader.location for reader in self.readers)

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """Shape that holds a tile of any source, (bands, height, width)."""
        bands, height, width = np.max([reader.tile_shape for reader in self.readers], axis=0).tolist()
        return bands, height, width

    def stage(self, folder: Path, quota: int | None = None) -> None:
        """Read from node-local copies of the shards; each source has a part of the quota in proportion to its size."""
        total = max(1, sum(reader.nbytes for reader in self.readers))
        for reader in self.readers:
            reader.stage(folder, None if quota is None else quota * reader.nbytes // total)

    def locate(self, row: int) -> tuple[int, int]:
        """Return the source of a row, and its row number there."""
        source = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return source, row - self.first_rows[source]

    def key(self, row: int) -> str:
        """Return the name of the source and the sample key of a row."""
        source, own = self.locate(row)
        return f"{self.names[source]}/{self.readers[source].key(own)}"

    def location_ids(self, rows: np.ndarray) -> np.ndarray:
        """Return the location number of each tile row, int64; no two sources share one."""
        ids = np.empty(len(rows), dtype=np.int64)
        sources = np.searchsorted(self.first_rows, rows, side="right") - 1
        for source in np.unique(sources):
            own = sources == source
            found = self.readers[source].location_ids(rows[own] - self.first_rows[source])
            ids[own] = found + self._first_locations[source]
        return ids

    def read(
        self, rows: Sequence[int] | np.ndarray, out: np.ndarray, quarantine: Quarantine | None = None
    ) -> list[int]:
        """Decode tiles into ``out``, int16 (len(rows), bands, height, width), C-contiguous, and pad them.

        ``out`` may be smaller than `tile_shape` if all requested tiles fit into it. See ShardReader.read.
        """
        self._check_fits(rows, out)
        return read_all(rows, self._read_tile, (out,), self._pool, self.key, quarantine)

    def read_planes(
        self,
        rows: Sequence[int] | np.ndarray,
        out: np.ndarray,
        bands: np.ndarray,
        quarantine: Quarantine | None = None,
    ) -> list[int]:
        """Read tiles without undoing their prediction, see ShardReader.read_planes.

        A tile with fewer pixels than its place is decoded here, since its planes have another shape.
        """
        self._check_fits(rows, out)
        return read_all(rows, self._read_tile_planes, (out, bands), self._pool, self.key, quarantine)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Start copying these shards to the node, in this order; no-op without staging."""
        sources = np.searchsorted(self.first_shards, shards, side="right") - 1
        for source in dict.fromkeys(sources.tolist()):
            own = np.asarray(shards)[sources == source] - self.first_shards[source]
            self.readers[source].prefetch(own.tolist())

    @property
    def counters(self) -> dict[str, int]:
        """Counters of staging of all sources together, for telemetry."""
        counters: dict[str, int] = {}
        for reader in self.readers:
            counters |= {name: counters.get(name, 0) + count for name, count in reader.counters.items()}
        return counters

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
        for reader in self.readers:
            reader.close()

    def _read_tile(self, row: int, out: np.ndarray) -> None:
        source, own = self.locate(row)
        reader = self.readers[source]
        bands, height, width = reader.tile_shape
        if any(np.less(out.shape, reader.tile_shape)):
            raise ValueError(f"a tile of {reader.tile_shape} does not fit into {out.shape}")
        if (height, width) == out.shape[1:]:
            reader.read_tile(own, out[:bands])
            out[bands:] = NODATA
            return
        tile = np.empty(reader.tile_shape, dtype=np.int16)
        reader.read_tile(own, tile)
        out.fill(NODATA)
        out[:bands, :height, :width] = tile

    def _read_tile_planes(self, row: int, out: np.ndarray, bands: np.ndarray) -> None:
        source, own = self.locate(row)
        reader = self.readers[source]
        count, *size = reader.tile_shape
        if (*size,) == out.shape[1:] and count <= len(out):
            reader.read_tile_planes(own, out[:count], bands[:count])
            bands[count:, BOUND] = MISSING
        else:
            self._read_tile(row, out)
            bands[:, BOUND] = VALUES

    def _check_fits(self, rows: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        if len(out) != len(rows) or out.dtype != np.int16 or not out.flags.c_contiguous:
            raise ValueError(f"{len(rows)} tiles of int16 do not fit into {out.dtype} {out.shape}")


TileReader = ShardReader | MixtureReader
"""Reader of one dataset, or of several as one."""


def _begins(counts: Iterable[int]) -> list[int]:
    """Return the number at which each part begins if parts of these lengths are numbered through."""
    return [0, *np.cumsum(list(counts)).tolist()][:-1]
