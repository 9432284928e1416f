"""The last step of `pack`: join finished shards into a dataset with a tile table, statistics and a manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from shards.errors import ShardError, TooManyBadTiles
from shards.files.atomic import TEMPORARY, atomic_open, write_atomic
from shards.format import table
from shards.format.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    Origin,
    Rejected,
    ShardEntry,
    ShardIndex,
    Sums,
    band_sums,
    content_hash,
    first_problem,
    read_json,
    read_manifest,
    to_json,
)
from shards.format.statistics import BandSums
from shards.pack.record import PackRecord, read_record
from shards.pack.writer import index_path
from shards.sensors.sensor import NODATA, Sensor


@dataclass(frozen=True)
class PackResult:
    """The result of `pack`: ``written`` counts the shards of this run, ``filtered`` the excluded tiles by limit."""

    manifest: Manifest
    rejected: list[Rejected]
    written: int
    filtered: dict[str, int] = field(default_factory=dict)


def merge_shards(dest: Path, max_bad: float, written: int, source: Path | None = None) -> PackResult:
    """Write the table, the statistics and the manifest of finished shards, in shard order.

    Args:
        max_bad: maximum fraction of unusable tiles.
        source: folder of the source tiles, to report full paths of rejected ones.

    Raises:
        ShardError: if a shard is missing or damaged.
        TooManyBadTiles: if more than ``max_bad`` of the listed tiles are unusable.
    """
    record = read_record(dest)
    last = record.generations[-1]
    names = [shard_name(number) for number in range(last.first_shard + last.shards)]
    indexes = [read_json(index_path(dest / name), ShardIndex) for name in names]
    rejected = [bad for index in indexes for bad in index.rejected]
    if source is not None:
        rejected = [bad.model_copy(update={"path": str(source / bad.path)}) for bad in rejected]
    listed = sum(generation.tiles for generation in record.generations)
    if len(rejected) > max_bad * listed:
        examples = "; ".join(f"{bad.path}: {bad.reason}" for bad in rejected[:3])
        of_other_size = any(" px where " in bad.reason for bad in rejected)
        hint = "set the tile size with --size, which also cuts larger rasters" if of_other_size else "repair them"
        raise TooManyBadTiles(
            f"{len(rejected)} of {listed} tiles ({len(rejected) / listed:.1%}) are unusable: "
            f"{examples}{'; ...' if len(rejected) > 3 else ''}: {hint}, remove {dest} and pack again, or exclude them: "
            f"--max-bad now allows {max_bad:.1%}"
        )
    if not any(index.tiles.key for index in indexes):
        raise ShardError(f"{dest}: no usable tile among {listed}: check --sensor, --size and the limits")
    sensor, size = record.sensor, record.tile_size
    codec, shape = record.codec.get_config(), [sensor.num_bands, size, size]
    manifest = join_shards(dest, names, codec, shape, sensor, len(record.generations))
    return PackResult(manifest, rejected, written)


def missing_shards(dest: Path, record: PackRecord) -> list[str]:
    """Return the names of the shards that have no index yet."""
    last = record.generations[-1]
    tars = [dest / shard_name(number) for number in range(last.first_shard + last.shards)]
    return [tar.name for tar in tars if not index_path(tar).exists()]


def shard_name(number: int) -> str:
    """Return the file name of shard ``number``."""
    return f"shard-{number:06d}.tar"


def join_shards(
    dest: Path,
    names: Sequence[str],
    codec: dict[str, Any],
    shape: list[int],
    sensor: Sensor,
    generations: int,
    made_from: Origin | None = None,
) -> Manifest:
    """Join finished shards into a dataset and publish its table, statistics and manifest.

    Args:
        names: names of the tars, in order; each has an index.
        codec: config of the tile codec.
        shape: (bands, height, width) of every tile.
        generations: number of runs that added tiles, including the first.
        made_from: dataset that these shards were transcoded from.

    Raises:
        ShardError: if an index is missing or damaged, or two tiles have the same key.
    """
    entries: list[ShardEntry] = []
    columns: list[dict] = []
    sums = BandSums.empty(sensor.num_bands)
    rejected = 0
    for name in names:
        path = index_path(dest / name)
        index = read_json(path, ShardIndex)
        if len(index.sums.count) != sensor.num_bands:
            raise ShardError(
                f"{path}: sums of {len(index.sums.count)} bands, but the tiles have {sensor.num_bands}; remove it and "
                "its tar, and pack again"
            )
        sums.add(band_sums(index.sums))
        rejected += len(index.rejected)
        count = len(index.tiles.key)
        if count:  # shards without usable tiles are omitted
            columns.append(index.tiles.model_dump())
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entries.append(
                ShardEntry(name=name, tiles=count, size=index.size, sha256=index.sha256, index_sha256=digest)
            )
    tiles = table.join(columns, range(len(columns)))
    _no_key_twice(dest, tiles, entries)
    data = table.to_bytes(tiles)
    content: dict[str, Any] = dict(
        format=FORMAT,
        content_hash=content_hash(entries, codec, sensor.identity),
        generations=generations,
        sensor=sensor.name,
        wavelength_nm=list(sensor.wavelength_nm),
        fwhm_nm=list(sensor.fwhm_nm),
        scale=sensor.scale,
        nodata=NODATA,
        tile_shape=shape,
        dtype="int16",
        codec=codec,
        tiles=len(tiles),
        locations=int(tiles["location_id"].max()) + 1,
        rejected=rejected,
        mean=sums.mean().tolist(),
        std=sums.std().tolist(),
        sums=Sums(**vars(sums)),
        table=f"tiles-{generations - 1:03d}.npy",
        table_sha256=hashlib.sha256(data).hexdigest(),
        shards=entries,
        made_from=made_from,
    )
    try:
        manifest = Manifest(**content).sealed()
    except ValidationError as error:
        raise ShardError(
            f"{dest}: its parts don't form a dataset: {first_problem(error)}; pack or index it again"
        ) from None
    publish(dest, manifest, data)
    return manifest


def _no_key_twice(dest: Path, tiles: np.ndarray, entries: list[ShardEntry]) -> None:
    keys, counts = np.unique(tiles["key"], return_counts=True)
    if counts.max() > 1:
        twice = keys[counts.argmax()]
        where = [entries[number].name for number in tiles["shard"][tiles["key"] == twice]]
        raise ShardError(
            f"{dest}: sample key '{twice.decode()}' is in {where[0]} and in {where[1]}: remove one of them"
        )


def publish(dest: Path, manifest: Manifest, tiles: bytes) -> None:
    """Write a dataset's files, the manifest last, so that readers see the previous dataset until then."""
    if (dest / MANIFEST).exists():
        try:
            if read_manifest(dest) == manifest and (dest / manifest.table).read_bytes() == tiles:
                return
        except (ShardError, OSError):
            pass  # damaged: written again
    for leftover in dest.glob(f"*{TEMPORARY}"):  # left by killed runs; all shards are finished now
        leftover.unlink(missing_ok=True)
    write_atomic(dest / manifest.table, tiles)
    for name, values in (("mu.npy", manifest.mu), ("sigma.npy", manifest.sigma)):
        with atomic_open(dest / name) as file:
            np.save(file, values, allow_pickle=False)
    write_atomic(dest / MANIFEST, to_json(manifest))
