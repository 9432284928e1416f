"""From planned sample numbers to tiles on the device: a reading thread fills a ring of integer buffers."""

import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shards.order.plan import SamplePlan, rank_samples
from shards.read.quarantine import Quarantine
from shards.read.reader import ShardReader


@dataclass(frozen=True)
class TileBatch:
    """One micro batch.

    Attributes:
        tiles: int16 (U, C, H, W) on the device, each read once; valid until the next batch is asked for.
        samples: int64 sample numbers (B,).
        rows: int64 (B, K) on the device: which of the tiles are the K timestamps of each sample.
        places: int64 (B,) on the device: each sample's location, as a number.
    """

    tiles: Tensor
    samples: np.ndarray
    rows: Tensor
    places: Tensor


@dataclass(frozen=True)
class _Filled:
    """Tiles on the device, and the buffer that they are in or came from."""

    tiles: Tensor
    samples: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    buffer: Tensor


class TileStream:
    """Micro batches of one rank, read ahead of the training loop.

    Args:
        reader: of the shards.
        plan: which tile each sample number is.
        device: where tiles go.
        prefetch: micro batches read ahead.
        timestamps: K tiles for each sample, 1 or 2: two different dates of a location that has them.
        quarantine: takes damaged tiles; None makes one an error.

    Attributes:
        wait_seconds: time that ``batches`` has kept its caller waiting, since the start.
        decoded_bytes: of the tiles that it has handed out, since the start.
    """

    def __init__(
        self,
        reader: ShardReader,
        plan: SamplePlan,
        device: torch.device,
        prefetch: int,
        quarantine: Quarantine | None = None,
        timestamps: Literal[1, 2] = 1,
    ) -> None:
        self.reader, self.plan, self.device, self.prefetch = reader, plan, device, prefetch
        self.quarantine, self.timestamps = quarantine, timestamps
        self.wait_seconds, self.decoded_bytes = 0.0, 0
        self._epoch = -1
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batches(self, numbers: Iterable[np.ndarray]) -> Generator[TileBatch, None, None]:
        """Yield a batch for each array of sample numbers, all of one length.

        Raises:
            ShardError: from the reading thread (a bad tile, or too many of them), when the loop reaches the bad batch.
        """
        free: queue.Queue[Tensor | None] = queue.Queue()
        ready: queue.Queue[_Filled | BaseException | None] = queue.Queue()
        for _ in range(self.prefetch + 1):
            free.put(None)  # allocated by the thread, when the batch length is known
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
                self.decoded_bytes += item.tiles.nbytes
                if self._copies is not None:
                    item.tiles.record_stream(torch.cuda.current_stream())
                    free.put(item.buffer)
                rows, places = (torch.from_numpy(one).to(self.device) for one in (item.rows, item.places))
                yield TileBatch(item.tiles, item.samples, rows, places)
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
                self.reader.read(tiles, buffer.numpy()[: len(tiles)], self.quarantine)
                places = self.reader.table["location_id"][tiles[rows[:, 0]]].astype(np.int64)
                ready.put(_Filled(self._to_device(buffer[: len(tiles)]), samples, rows, places, buffer))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    def _to_device(self, tiles: Tensor) -> Tensor:
        """On a GPU a copy on a stream of its own, under the step that is at work; the reading thread waits for it."""
        if self._copies is None:
            return tiles
        with torch.cuda.stream(self._copies):
            moved = tiles.to(self.device, non_blocking=True)
            self._copies.synchronize()
        return moved

    def _tiles(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tile rows to read, and which of them belong to each sample (B, K)."""
        if self.timestamps == 1:
            return self.plan.tiles(samples), np.arange(len(samples))[:, None]
        pairs = self.plan.pairs(samples)
        tiles, rows = np.unique(pairs, return_inverse=True)  # a lone timestamp is read once
        return tiles, rows.reshape(pairs.shape)

    def _copy_ahead(self, samples: np.ndarray) -> None:
        """At the first batch of an epoch: name the shards that it will read, for node-local copies."""
        epoch = int(self.plan.epochs(samples)[-1])
        if epoch != self._epoch:
            self._epoch = epoch
            self.reader.prefetch(self.plan.shards_from(int(samples[-1])).tolist())


def micro_batches(
    first_sample: int, steps: int, global_batch: int, micro_batch: int, rank: int, world_size: int
) -> Iterator[np.ndarray]:
    """Sample numbers of one rank's micro batches of ``steps`` steps from ``first_sample``, in training order."""
    for step in range(steps):
        samples = first_sample + rank_samples(step, global_batch, rank, world_size)
        yield from samples.reshape(-1, micro_batch)
