"""The stream of tiles to the device: a thread reads planned samples into a ring of integer buffers.

The same thread makes the random draws of a batch. On a GPU all copies come from pinned memory, on a stream of their
own, so that neither the training loop nor its kernels wait for them.

With ``decode="device"``, readers undo only the compression of tiles, and the device undoes their prediction on the same
stream. Damaged tiles are found by the readers, before a batch is made.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pretrain.data.draws import Draws, to_device
from pretrain.data.restore import restore_tiles, send_planes
from shards.format.planes import COLUMNS
from shards.order.mixture import TilePlan
from shards.order.plan import rank_samples
from shards.read.mixture import TileReader
from shards.read.quarantine import Quarantine


@dataclass(frozen=True)
class TileBatch:
    """A micro batch.

    Attributes:
        tiles: int16 (U, C, H, W) on the device, without duplicates; valid until the next batch is requested.
        samples: int64 sample numbers (B,).
        rows: int64 (B, K) on the device: positions in ``tiles`` of the K timestamps of each sample.
        location_ids: int64 (B,) on the device: location number of each sample.
        sources: int64 (B,) on the device: source of each sample, 0 where the run has one.
        tile_sources: int64 (U,) on the device: source of each tile.
        draws: random draws on the device, by name.
    """

    tiles: Tensor
    samples: np.ndarray
    rows: Tensor
    location_ids: Tensor
    sources: Tensor
    tile_sources: Tensor
    draws: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the tensors, which were made on another stream, until this one is done with them."""
        tensors = (self.tiles, self.rows, self.location_ids, self.sources, self.tile_sources)
        for tensor in (*tensors, *itertools.chain(*self.draws.values())):
            tensor.record_stream(stream)


@dataclass(frozen=True)
class _Filled:
    """A batch and the buffer that holds its tiles or that they were copied from."""

    batch: TileBatch
    buffer: Tensor


class TileStream:
    """Reads the micro batches of one rank ahead of the training loop.

    Args:
        reader: reader of the shards.
        plan: mapping from sample numbers to tiles.
        device: device that receives the tiles.
        prefetch: number of micro batches read ahead.
        timestamps: number K of tiles for each sample, 1 or 2: two different dates of the location if it has them.
        quarantine: receives damaged tiles; if None, a damaged tile is an error.
        draws: maps sample numbers and their sources to the random draws of their batch.
        decode: where the prediction of tiles is undone; the tiles are the same.

    Attributes:
        wait_seconds: total time that callers of ``batches`` have waited for a batch.
        decoded_bytes: total size of the tiles in all batches so far.
    """

    def __init__(
        self,
        reader: TileReader,
        plan: TilePlan,
        device: torch.device,
        prefetch: int,
        quarantine: Quarantine | None = None,
        timestamps: Literal[1, 2] = 1,
        draws: Callable[[np.ndarray, np.ndarray], Draws] = lambda samples, sources: {},
        decode: Literal["host", "device"] = "host",
    ) -> None:
        self.reader, self.plan, self.device, self.prefetch = reader, plan, device, prefetch
        self.quarantine, self.timestamps, self.draws, self.decode = quarantine, timestamps, draws, decode
        self.wait_seconds, self.decoded_bytes = 0.0, 0
        self._epochs: dict[int, int] = {}  # the last one of each source
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batches(self, numbers: Iterable[np.ndarray]) -> Generator[TileBatch, None, None]:
        """Yield a batch for each array of sample numbers; all arrays have the same length.

        Raises:
            ShardError: a tile is damaged, or too many are; raised when the loop reaches the batch.
        """
        free: queue.Queue[Tensor | None] = queue.Queue()
        ready: queue.Queue[_Filled | BaseException | None] = queue.Queue()
        for _ in range(self.prefetch + 1):
            free.put(None)  # the thread allocates it once the batch length is known
        thread = threading.Thread(target=self._fill, args=(numbers, free, ready), name="tile-stream", daemon=True)
        thread.start()
        closed = object()
        try:
            while True:
                begin = time.perf_counter()
                item = ready.get()
                self.wait_seconds += time.perf_counter() - begin
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                self.decoded_bytes += item.batch.tiles.nbytes
                if self._copies is not None:
                    item.batch.record_stream(torch.cuda.current_stream())
                    free.put(item.buffer)
                yield item.batch
                if self._copies is None:
                    free.put(item.buffer)
        finally:
            free.put(closed)  # type: ignore[arg-type]  # wakes a thread that waits for a buffer
            thread.join()

    def _fill(self, numbers: Iterable[np.ndarray], free: queue.Queue, ready: queue.Queue) -> None:
        try:
            for samples in numbers:
                self._copy_ahead(samples)
                buffer = free.get()
                if buffer is None:
                    shape = (len(samples) * self.timestamps, *self.reader.tile_shape)
                    buffer = torch.empty(shape, dtype=torch.int16, pin_memory=self.device.type == "cuda")
                elif not isinstance(buffer, Tensor):
                    return
                tiles, rows = self._tiles(samples)
                used = buffer[: len(tiles)]
                bands = self._read(tiles, used)
                location_ids = self.reader.location_ids(tiles[rows[:, 0]])
                ready.put(_Filled(self._batch(used, bands, samples, rows, location_ids), buffer))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    def _read(self, tiles: np.ndarray, buffer: Tensor) -> np.ndarray | None:
        """Fill a buffer with tiles and return None, or with their planes and return what each band needs."""
        if self.decode == "host":
            self.reader.read(tiles, buffer.numpy(), self.quarantine)
            return None
        bands = np.zeros((len(tiles), buffer.shape[1], COLUMNS), np.int32)
        self.reader.read_planes(tiles, buffer.numpy(), bands, self.quarantine)
        return bands

    def _batch(
        self,
        buffer: Tensor,
        bands: np.ndarray | None,
        samples: np.ndarray,
        rows: np.ndarray,
        location_ids: np.ndarray,
    ) -> TileBatch:
        """Make a batch; on a GPU, copy it on a separate stream, which overlaps the training step, and wait."""
        sources, tile_sources = self.plan.sources(samples), np.empty(len(buffer), np.int64)
        tile_sources[rows] = sources[:, None]
        draws = self.draws(samples, sources)
        with nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            on_device = {name: to_device(arrays, self.device) for name, arrays in draws.items()}
            positions, places, of_samples, of_tiles = to_device(
                (rows, location_ids, sources, tile_sources), self.device
            )
            tiles = self._tiles_on_device(buffer, bands)
            batch = TileBatch(tiles, samples, positions, places, of_samples, of_tiles, on_device)
            if self._copies is not None:
                self._copies.synchronize()
        return batch

    def _tiles_on_device(self, buffer: Tensor, bands: np.ndarray | None) -> Tensor:
        if bands is None:
            return buffer.to(self.device, non_blocking=True)
        (numbers,) = to_device((bands,), self.device)
        return restore_tiles(send_planes(buffer, bands, self.device), numbers)

    def _tiles(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tile rows to read, and the positions among them that belong to each sample (B, K)."""
        if self.timestamps == 1:
            return self.plan.tiles(samples), np.arange(len(samples))[:, None]
        pairs = self.plan.pairs(samples)
        tiles, rows = np.unique(pairs, return_inverse=True)  # a single timestamp is read once
        return tiles, rows.reshape(pairs.shape)

    def _copy_ahead(self, samples: np.ndarray) -> None:
        """Announce the shards of a source's epoch at its first batch, for node-local copies."""
        sources, epochs = self.plan.sources(samples), self.plan.epochs(samples)
        for source in np.unique(sources).tolist():
            last = int(np.flatnonzero(sources == source)[-1])
            if epochs[last] != self._epochs.get(source):
                self._epochs[source] = int(epochs[last])
                self.reader.prefetch(self.plan.shards_from(int(samples[last])).tolist())


def micro_batches(
    first_sample: int, steps: int, global_batch: int, micro_batch: int, rank: int, world_size: int
) -> Iterator[np.ndarray]:
    """Yield the sample numbers of one rank's micro batches for ``steps`` steps from ``first_sample``, in order."""
    for step in range(steps):
        samples = first_sample + rank_samples(step, global_batch, rank, world_size)
        yield from samples.reshape(-1, micro_batch)
