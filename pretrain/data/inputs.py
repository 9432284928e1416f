"""The inputs of a run: its sources, the order of the training tiles, and the held-out tiles."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.config.data import DataConfig, SourceConfig
from pretrain.models.registry import outline_encoder
from shards.errors import ConfigError, ShardError
from shards.format.manifest import Manifest
from shards.order.mixture import MixturePlan, SourceOrder, TilePlan, whole_weights
from shards.order.plan import SamplePlan, held_out_hash, train_val_split
from shards.order.view import view_hash, view_rows
from shards.read.mixture import MixtureReader, TileReader
from shards.read.quarantine import NoneLeft, Quarantine
from shards.read.reader import ShardReader
from shards.sensors.sensor import MATCH_TOLERANCE_NM


@dataclass(frozen=True)
class Source:
    """One dataset of a run.

    Attributes:
        name: name in logs and scalars.
        weight: whole number, its share of the samples relative to the other sources.
        manifest: description of the dataset.
        plan: order of its training tiles.
        held_out: rows of the tiles held out for validation, as the run's reader numbers them.
        held_out_hash: hash of the held-out locations.
    """

    name: str
    weight: int
    manifest: Manifest
    plan: SamplePlan
    held_out: np.ndarray
    held_out_hash: str


@dataclass(frozen=True)
class Inputs:
    """Open shards and the order in which a run reads them.

    Attributes:
        reader: reader of the shards of all sources.
        plan: mapping from sample numbers to tiles.
        sources: what the run reads from; one if ``data.shards`` names it.
        quarantine: damaged tiles, for training and held out.
    """

    reader: TileReader
    plan: TilePlan
    sources: tuple[Source, ...]
    quarantine: Quarantine

    @property
    def manifests(self) -> list[Manifest]:
        """Descriptions of the sources, in their order."""
        return [source.manifest for source in self.sources]

    @property
    def held_out(self) -> np.ndarray:
        """Rows of the tiles of all sources held out for validation, int64."""
        return _held_out(self.sources)

    @property
    def held_out_hash(self) -> str:
        """Hash of the held-out locations, stored in checkpoints so that a resumed run never trains on them."""
        hashes = [source.held_out_hash for source in self.sources]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def starting_at(self, begin: int) -> "Inputs":
        """Return the same inputs with sample number ``begin`` as the first of the order of several sources."""
        return replace(self, plan=self.plan.starting_at(begin)) if isinstance(self.plan, MixturePlan) else self

    def always(self, count: int) -> tuple[np.ndarray, list[int]]:
        """Return ``count`` tiles of the first source that are the same for the entire run and on all ranks.

        They are held-out tiles if there are any.

        Returns:
            int16 (count, bands of the run, height, width), and the tile rows.
        """
        source = self.sources[0]
        tiles = np.empty((count, self.reader.tile_shape[0], *source.manifest.tile_shape[1:]), dtype=np.int16)
        for rows in (source.held_out, source.plan.rows):
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
    reader = open_reader(data)
    if data.stage:
        reader.stage(Path(data.stage), data.stage_quota_gb and data.stage_quota_gb * 10**9)
    plan, sources = plan_samples(config, reader)
    first_rows = reader.first_rows if isinstance(reader, MixtureReader) else (0,)
    held_out, rank = _held_out(sources), distributed.rank()
    quarantine = Quarantine(plan.rows, plan.dataset, data.max_bad_tiles, folder, rank, held_out, first_rows)
    return Inputs(reader, plan, sources, quarantine)


def _held_out(sources: Sequence[Source]) -> np.ndarray:
    return np.concatenate([source.held_out for source in sources])


def open_reader(data: DataConfig) -> TileReader:
    """Open the shards of all sources, without staging; raises ShardError like ShardReader."""
    if not data.sources:
        return ShardReader(str(data.shards), data.read_threads)
    readers = [ShardReader(source.shards) for source in data.sources]
    return MixtureReader(readers, [source.label for source in data.sources], data.read_threads)


def plan_samples(config: PretrainConfig, reader: TileReader) -> tuple[TilePlan, tuple[Source, ...]]:
    """Return the order of a run's training tiles, and its sources.

    Raises:
        ConfigError: a source has no tiles to train on, or its tiles don't fit the model.
    """
    data, seed = config.data, config.run.seed
    if isinstance(reader, ShardReader):
        source = _plan_source(config, data.each[0], reader, 0, 1)
        return source.plan, (source,)
    weights = whole_weights([source.weight for source in data.sources])
    sources = []
    for number, each in enumerate(data.each):
        try:
            part = reader.readers[number]
            sources.append(_plan_source(config, each, part, reader.first_rows[number], weights[number]))
        except ConfigError as error:
            raise ConfigError(f"key 'data.sources.{number}' ({each.label}): {error}") from None
    if not config.model.by_wavelength:
        _check_same_sensor(sources)
    order = SourceOrder(weights, seed, config.model.bn_group)
    plans = [source.plan for source in sources]
    return MixturePlan(plans, reader.first_rows, reader.first_shards, order), tuple(sources)


def _plan_source(
    config: PretrainConfig, source: SourceConfig, reader: ShardReader, first_row: int, weight: int
) -> Source:
    assert source.view is not None and source.holdout is not None
    _check_image_fits(config, reader.tile_shape)
    _check_bands_suffice(config, reader.manifest)
    if config.model.by_wavelength:
        _check_bands_known(reader.manifest)
    table, seed = reader.table, config.run.seed
    rows = view_rows(source.view, table)
    dataset = view_hash(reader.manifest.content_hash, rows, len(table))
    train, held_out = train_val_split(table, source.holdout, seed, rows)
    plan = SamplePlan(table, train, dataset, seed, config.data.order)
    return Source(source.label, weight, reader.manifest, plan, held_out + first_row, held_out_hash(table, held_out))


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


def _check_bands_known(manifest: Manifest) -> None:
    """Refuse bands without center or width, which a stem by wavelength would take for padding."""
    unknown = sum(
        center <= 0 or width <= 0 for center, width in zip(manifest.wavelength_nm, manifest.fwhm_nm, strict=True)
    )
    if unknown:
        raise ConfigError(
            f"key 'model.stem': it needs the center and width of every band, but {unknown} of {manifest.sensor} have "
            "none: pack the tiles again with a band table (--sensor)"
        )


def _check_same_sensor(sources: list[Source]) -> None:
    """Refuse sources of other bands than the first one's: a stem that reads bands by position would confuse them."""
    first = sources[0]
    for number, source in enumerate(sources):
        own, expected = source.manifest.wavelength_nm, first.manifest.wavelength_nm
        if len(own) != len(expected) or np.abs(np.subtract(own, expected)).max() > MATCH_TOLERANCE_NM:
            raise ConfigError(
                f"key 'data.sources.{number}' ({source.name}): {len(own)} bands of {source.manifest.sensor}, but "
                f"{first.name} has {len(expected)} of {first.manifest.sensor}: this model's stem reads bands by their "
                "position; set model.stem=wave, or leave the source out"
            )
