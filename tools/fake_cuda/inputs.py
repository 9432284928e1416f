"""Tiles for a counted step: the real stream, on shards whose table exists and whose tiles are blank."""

import threading
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.stream import TileBatch, TileStream, micro_batches
from pretrain.objectives.objective import Objective
from shards.format.manifest import Manifest
from shards.order.plan import SamplePlan
from shards.sensors.sensor import get_sensor

TILE_SHAPE = (202, 128, 128)
_DATES = 2
_LOCATIONS = 4096


def manifest() -> Manifest:
    """Return the fields that training reads: shape, bands and statistics of SpectralEarth's tiles."""
    bands, sensor = TILE_SHAPE[0], get_sensor("enmap")
    return Manifest.model_construct(
        tile_shape=list(TILE_SHAPE),
        wavelength_nm=list(sensor.wavelength_nm),
        fwhm_nm=list(sensor.fwhm_nm),
        mean=[3000.0] * bands,
        std=[1700.0] * bands,
    )


class BlankShards:
    """Stands in for a ShardReader: locations of two dates each, whose tiles are never written."""

    tile_shape = TILE_SHAPE

    def __init__(self) -> None:
        tiles = np.arange(_LOCATIONS * _DATES)
        self.table = np.zeros(len(tiles), dtype=[("shard", "u4"), ("location_id", "u4")])
        self.table["shard"], self.table["location_id"] = tiles // 512, tiles // _DATES

    def location_ids(self, rows: np.ndarray) -> np.ndarray:
        """Return the location number of each tile row, int64."""
        return self.table["location_id"][rows].astype(np.int64)

    def read(self, rows: np.ndarray, out: np.ndarray, quarantine: Any = None) -> None:
        """Leave the buffer as it is."""

    def prefetch(self, shards: Any) -> None:
        """There is nothing to copy."""


class FakeStream(TileStream):
    """A stream whose thread copies real pinned buffers to a device without storage."""

    def __init__(self, config: PretrainConfig, objective: Objective, mode: FakeTensorMode) -> None:
        shards: Any = BlankShards()
        plan = SamplePlan(shards.table, np.arange(len(shards.table)), "blank", config.run.seed, config.data.order)
        device, prefetch = distributed.device(), config.data.prefetch
        super().__init__(shards, plan, device, prefetch, None, objective.timestamps, objective.draws)
        self._mode = mode

    def _batch(self, *arguments: Any) -> TileBatch:
        with self._mode:
            return super()._batch(*arguments)

    def steps(self, config: PretrainConfig, steps: int) -> Generator[TileBatch, None, None]:
        """Yield rank 0's micro batches of a few steps.

        The thread reads only while a batch is awaited: threads can't share a FakeTensorMode.
        """
        train, world, gate = config.train, torch.distributed.get_world_size(), threading.Semaphore(0)
        numbers = micro_batches(0, steps, train.global_batch, train.micro_batch, 0, world)
        batches = self.batches(samples for samples in numbers if gate.acquire())
        try:
            for _ in range(steps * config.accumulation(world)):
                gate.release()
                yield next(batches)
        finally:
            gate.release()
            batches.close()
