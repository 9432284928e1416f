"""`pack`: write tiles into a folder of shards; parallel over processes and nodes, restartable and reproducible.

A single scan creates the file list, the list determines the division into shards (shards/pack/listing.py), and every
shard is a separate job. A shard with an index is finished; after a kill all others are written again. Each part of an
array job writes every n-th shard; the parts share only the folder. The manifest is written last (shards/pack/merge.py),
so a folder without one is unfinished.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shards.errors import ShardError, TileError
from shards.files.atomic import sweep
from shards.format.manifest import Rejected
from shards.pack.intermediate import IntermediateReader, remove_intermediate_shards, write_intermediate_shards
from shards.pack.listing import ListedTile, read_list
from shards.pack.merge import PackResult, merge_shards, missing_shards, shard_name
from shards.pack.record import PackRecord
from shards.pack.scan import PackConfig, begin, cut_generation, list_intermediate_tiles
from shards.pack.writer import Sample, encode_sample, is_complete, write_shard
from shards.sensors.sensor import Sensor
from shards.sources.bundles import Bundle, TileOptions
from shards.sources.geotiff import read_tile
from shards.sources.inputs import find_bundles
from shards.sources.labels import Labels, make_grid
from shards.sources.scene_sensor import find_sensor
from shards.workers import counters, run_jobs


@dataclass(frozen=True)
class Part:
    """Part ``number`` of ``of`` of the shards, counted from 1."""

    number: int = 1
    of: int = 1

    def take(self, everything: Sequence) -> list:
        """Return this part's items of a sequence."""
        return list(everything[self.number - 1 :: self.of])


def pack(
    source: Path,
    dest: Path,
    config: PackConfig,
    workers: int = 1,
    max_bad: float = 0.01,
    labels: Labels | None = None,
    append: bool = False,
) -> PackResult:
    """Write all tiles of ``source`` into shards in ``dest``, or continue an earlier run.

    Args:
        workers: number of processes.
        max_bad: maximum fraction of unusable tiles.
        append: whether to add the tiles of ``source`` that are not in ``dest`` yet, as new shards beside the old ones.

    Raises:
        SourceError: if there are no tiles.
        ShardError: if ``dest`` was packed with other options or from other tiles.
        TooManyBadTiles: if ``max_bad`` is exceeded; finished shards are kept, but no manifest is written.
    """
    written = pack_part(source, dest, config, Part(), workers, labels, append)
    result = merge(dest, workers, max_bad, source)
    return replace(result, written=written + result.written)


def pack_part(
    source: Path,
    dest: Path,
    config: PackConfig,
    part: Part,
    workers: int = 1,
    labels: Labels | None = None,
    append: bool = False,
) -> int:
    """Write the shards of one part, for `merge` to join; returns the number of shards written by this call."""
    sensor = find_sensor(config.sensor)
    record = begin(source, dest, config, sensor, labels, append)
    if not record.generations[-1].list_name:
        options = record.options
        read = TileOptions(sensor, record.tile_size, config.limits, options.cut, config.mask_quality)
        bundles = find_bundles(source, read, config.pattern)
        write_intermediate_shards(part.take(_unchanged(bundles, record, source)), dest, record, workers)
        record = list_intermediate_tiles(dest, must=part.of == 1)
    if not record.generations[-1].list_name:
        return 0  # other parts are still reading their bundles; `merge` continues from here
    return _write_missing(dest, record, part, workers, source, labels)


def merge(dest: Path, workers: int = 1, max_bad: float = 0.01, source: Path | None = None) -> PackResult:
    """Join the parts of an array job: assemble shards from the tiles of bundles, then write table and manifest.

    Raises:
        ShardError: if a part is not finished; the message names what is missing.
    """
    record = list_intermediate_tiles(dest, must=True)
    missing = missing_shards(dest, record)
    if missing and not record.generations[-1].bundles:
        raise ShardError(f"{dest}: {len(missing)} shards are missing, e.g. {missing[0]}: run their parts again")
    written = _write_missing(dest, record, Part(), workers, None, None) if missing else 0
    result = merge_shards(dest, max_bad, written, source)
    filtered = remove_intermediate_shards(dest, len(record.generations))
    return replace(result, filtered=filtered)


def _write_missing(
    dest: Path, record: PackRecord, part: Part, workers: int, source: Path | None, labels: Labels | None
) -> int:
    """Write the missing shards of a part; returns their number."""
    jobs, total, done = [], 0, 0
    for number, generation in enumerate(record.generations):
        cut = cut_generation(record, read_list(dest, generation))
        shards = [(dest / shard_name(generation.first_shard + i), tiles) for i, tiles in enumerate(cut)]
        for tar, tiles in part.take(shards):
            total += len(tiles)
            if is_complete(tar):
                done += len(tiles)
                continue
            sweep(dest, f"{tar.stem}.*")
            jobs.append((tar, number, tiles, record, source, labels))
    for _ in run_jobs(_write_one, jobs, workers, total, done, "pack"):
        pass
    return len(jobs)


def _write_one(
    tar: Path, generation: int, tiles: list[ListedTile], record: PackRecord, source: Path | None, labels: Labels | None
) -> None:
    """Write the shard ``tar`` from its tiles, in source files or intermediate shards."""
    sensor = record.sensor
    if record.generations[generation].bundles:
        samples: Iterator[Sample | Rejected] = IntermediateReader(tar.parent, generation).samples(tiles)
    else:
        assert source is not None  # `merge` raises an error if these shards are missing
        samples = _read_samples(source, labels, tiles, sensor, record)
    write_shard(tar, samples, sensor.num_bands)


def _read_samples(
    source: Path, labels: Labels | None, tiles: list[ListedTile], sensor: Sensor, record: PackRecord
) -> Iterator[Sample | Rejected]:
    """Read, encode and yield the tiles of a shard one at a time; unusable ones are yielded as `Rejected`."""
    codec = record.codec
    for tile_source in (tile.source for tile in tiles):
        path = source / tile_source.path
        try:
            tile = read_tile(path, sensor, record.tile_size)
            grid = make_grid(tile.values.shape, tile.crs, tile.transform)
            mask = (
                labels.read("" if labels.one_file else tile_source.mask, grid) if labels and tile_source.mask else None
            )
            sample = encode_sample(tile_source, tile, mask, sensor, codec)
        except TileError as error:
            counters().add(1, 0, 0)
            yield Rejected(path=tile_source.path, reason=str(error).removeprefix(f"{path}: "))
            continue
        counters().add(1, tile.values.nbytes, len(sample.tile))
        yield sample


def _unchanged(bundles: list[Bundle], record: PackRecord, source: Path) -> list[Bundle]:
    """Return the bundles; raises ShardError if they differ from those in the record."""
    if [[bundle.name, bundle.fingerprint()] for bundle in bundles] != record.generations[-1].bundles:
        raise ShardError(f"{source}: its archives or products changed since pack began; choose another DEST")
    return bundles
