"""Training runs in memory: the loop, engine, objective and guard of a real run, on made tiles and without a folder."""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain import distributed
from pretrain.checkpointing.manager import CheckpointManager
from pretrain.config import PretrainConfig
from pretrain.data.stream import TileBatch, TileStream
from pretrain.engine.optimizers import build_optimizer
from pretrain.engine.schedules import learning_rate
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.callback import Callback
from pretrain.loop.loop import Loop, Schedule, StepFunction
from pretrain.models.normalize import Normalizer
from pretrain.objectives import build_objective
from pretrain.resilience.guard import Guard
from pretrain.resilience.signals import StopRequest
from pretrain.resilience.watchdog import Watchdog
from shards.format.manifest import Manifest
from shards.order.plan import SamplePlan
from shards.sensors.sensor import get_sensor

BANDS, TILE_SIZE, TILES = 202, 128, 512


class MadeShards:
    """Stands in for a ShardReader: smooth spectra with noise, a few distinct tiles that repeat."""

    def __init__(self, tile_size: int) -> None:
        self.tile_shape = (BANDS, tile_size, tile_size)
        self.table = np.zeros(TILES, dtype=[("shard", "u4"), ("location_id", "u4")])
        self.table["location_id"] = np.arange(TILES)
        generator = np.random.default_rng(0)
        spectra = 3000 + 1500 * np.sin(np.linspace(0, 6, BANDS))[None, :, None, None]
        noise = generator.normal(0, 400, (8, *self.tile_shape))
        self._tiles = (spectra + noise).astype(np.int16)

    def location_ids(self, rows: np.ndarray) -> np.ndarray:
        """Return the location number of each tile row, int64."""
        return self.table["location_id"][rows].astype(np.int64)

    def read(self, rows: np.ndarray, out: np.ndarray, quarantine: Any = None) -> None:
        """Fill a buffer with tiles."""
        out[...] = self._tiles[rows % len(self._tiles)]

    def prefetch(self, shards: Any) -> None:
        """There is nothing to copy."""


class MemoryRun:
    """A run of one process, started when its loop is.

    Args:
        config: of the run; nothing is read or written.
        tile_size: of the made tiles in pixels.

    Attributes:
        objective, engine: as a trainer builds them.
    """

    def __init__(self, config: PretrainConfig, tile_size: int = TILE_SIZE) -> None:
        self.config, self._shards, sensor = config, MadeShards(tile_size), get_sensor("enmap")
        manifest = Manifest.model_construct(
            tile_shape=list(self._shards.tile_shape),
            wavelength_nm=list(sensor.wavelength_nm),
            fwhm_nm=list(sensor.fwhm_nm),
            mean=[3000.0] * BANDS,
            std=[1700.0] * BANDS,
        )
        normalize = Normalizer(manifest.mean, manifest.std, config.augment.clip).to(distributed.device())
        self.objective = build_objective(config, normalize, [manifest])
        optimizer = build_optimizer(self.objective.module, config.optim)
        train = config.train
        self.engine = ZeroEngine(
            self.objective.module,
            optimizer,
            config.engine,
            train.micro_batch,
            config.accumulation(1),
            config.optim.clip,
        )

    def batches(self, numbers: Iterator[np.ndarray]) -> Iterator[TileBatch]:
        """Yield micro batches of these sample numbers through the real stream."""
        shards: Any = self._shards
        plan = SamplePlan(shards.table, np.arange(TILES), "made", self.config.run.seed, self.config.data.order)
        stream = TileStream(shards, plan, distributed.device(), 2, timestamps=self.objective.timestamps)
        stream.draws = self.objective.draws
        return stream.batches(numbers)

    def train(
        self, batches: Iterator[TileBatch], callbacks: Sequence[Callback], function: StepFunction | None = None
    ) -> None:
        """Take ``train.steps`` steps.

        Args:
            function: what is minimized; None for the objective.
        """
        config, train = self.config, self.config.train
        schedule = Schedule(
            train.steps, train.global_batch, lambda step: learning_rate(step, train.steps, config.lr, config.optim)
        )
        folder = Path(config.run.dir)
        watchdog = Watchdog(config.watchdog, folder, StopRequest())
        checkpoints = CheckpointManager(folder, self.engine)
        guard = Guard(config.guard)
        Loop(self.engine, function or self.objective, schedule, guard, checkpoints, watchdog, callbacks).run(batches)

    def free(self) -> None:
        """Give the memory back."""
        del self.engine, self.objective
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def join_group() -> None:
    """Start a process group of this process alone, as a run's launcher does."""
    from launch import runtime

    runtime.prepare_environment(threads=1)
    runtime.prepare_torch(threads=1)
    from pretrain.engine.zero import init_distributed

    init_distributed()
