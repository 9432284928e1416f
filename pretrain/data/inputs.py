"""The inputs of a run: its shards, the order of the training tiles, and the held-out tiles."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.models.registry import outline_encoder
from shards.errors import ConfigError, ShardError
from shards.format.manifest import Manifest
from shards.order.plan import SamplePlan, held_out_hash, train_val_split
from shards.order.view import view_hash, view_rows
from shards.read.quarantine import NoneLeft, Quarantine
from shards.read.reader import ShardReader


@dataclass(frozen=True)
class Inputs:
    """Open shards and the order in which a run reads them.

    Attributes:
        reader: reader of the shards.
        plan: mapping from sample numbers to tiles.
        held_out: rows of the tiles held out for validation.
        quarantine: damaged tiles of both sets.
    """

    reader: ShardReader
    plan: SamplePlan
    held_out: np.ndarray
    quarantine: Quarantine

    @property
    def manifest(self) -> Manifest:
        return self.reader.manifest

    @property
    def held_out_hash(self) -> str:
        """Hash of the held-out locations, stored in checkpoints so that a resumed run never trains on them."""
        return held_out_hash(self.reader.table, self.held_out)

    def always(self, count: int) -> tuple[np.ndarray, list[int]]:
        """Return ``count`` tiles that are the same for the entire run and on all ranks, held-out ones if there are any.

        Returns:
            int16 (count, bands, height, width), and the tile rows.
        """
        tiles = np.empty((count, *self.reader.tile_shape), dtype=np.int16)
        for rows in (self.held_out, self.plan.rows):
            with suppress(NoneLeft):
                if len(rows):
                    return tiles, self.reader.read(np.resize(rows, count), tiles, self.quarantine)
        raise ShardError(f"{self.reader.location}: no tile can be read: check it with `python -m shards verify`")


def open_inputs(config: PretrainConfig) -> Inputs:
    """Open the shards that the config names. Every rank does the same without communication.

    Raises:
        ConfigError, ShardError: the run can't train on these shards.
    """
    data, folder = config.data, Path(config.run.dir)
    quota = data.stage_quota_gb and data.stage_quota_gb * 10**9
    reader = ShardReader(data.shards, data.read_threads, Path(data.stage) if data.stage else None, quota)
    _check_image_fits(config, reader.tile_shape)
    _check_bands_suffice(config, reader.manifest)
    plan, held_out = plan_samples(config, reader)
    quarantine = Quarantine(plan.rows, plan.dataset, data.max_bad_tiles, folder, distributed.rank(), held_out)
    return Inputs(reader, plan, held_out, quarantine)


def plan_samples(config: PretrainConfig, reader: ShardReader) -> tuple[SamplePlan, np.ndarray]:
    """Return the order of a run's training tiles and the rows of the held-out tiles."""
    data, seed = config.data, config.run.seed
    rows = view_rows(data.view, reader.table)
    dataset = view_hash(reader.manifest.content_hash, rows, len(reader.table))
    train, held_out = train_val_split(reader.table, data.holdout, seed, rows)
    return SamplePlan(reader.table, train, dataset, seed, data.order), held_out


def _check_image_fits(config: PretrainConfig, tile_shape: tuple[int, int, int]) -> None:
    smallest = min(tile_shape[1:])
    if config.augment.crop_scale is None and config.model.image_size > smallest:
        raise ConfigError(
            f"key 'model.image_size': {config.model.image_size} px can't be cut from tiles of {smallest} px: "
            "lower it, or set augment.crop_scale"
        )


def _check_bands_suffice(config: PretrainConfig, manifest: Manifest) -> None:
    try:
        outline_encoder(**config.model.model_dump(), bands=manifest.tile_shape[0])
    except ValueError as error:
        raise ConfigError(f"key 'model.name': {error} (sensor {manifest.sensor})") from None
