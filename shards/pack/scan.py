"""The scan of the source: options, the file list, and the record that all later processes read."""

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from numcodecs.abc import Codec
from pydantic import Field

from shards.config import ConfigModel
from shards.console import get_logger
from shards.errors import ConfigError, ShardError, SourceError, TileError
from shards.files.atomic import TEMPORARY, sweep
from shards.files.lock import held
from shards.format.codec_registry import codec_of
from shards.format.manifest import FORMAT, MANIFEST, read_manifest
from shards.pack.intermediate import filtered_tiles, intermediate_tiles, remove_intermediate_shards
from shards.pack.listing import ListedTile, cut_shards, read_list, write_list
from shards.pack.record import RECORD, Generation, PackOptions, PackRecord, read_record, write_record
from shards.sensors.sensor import Sensor
from shards.sources.bundles import Bundle, TileOptions
from shards.sources.geotiff import read_tile
from shards.sources.inputs import Inputs, find_inputs
from shards.sources.labels import Labels
from shards.sources.layouts import SPLITS
from shards.sources.limits import SceneLimits
from shards.sources.pairs import find_labeled
from shards.sources.plain import EMPTY, PlainTiles, probe
from shards.sources.scene_sensor import find_sensor
from shards.sources.tile_names import SourceTile
from shards.sources.walk import is_data

logger = get_logger(__name__)

LOCK = "pack.lock"


class PackConfig(ConfigModel):
    """Options that determine the bytes of the result.

    Attributes:
        size: tile size in pixels; larger rasters are cut. None uses the most common size of the tiles.
        codec: a preset (``raw``, ``fast``, ``compact``, ``smallest``), the id of a codec, or its config as JSON.
        pattern: glob pattern of the source files that are tiles; None recognizes them by name.
        limits: limits on tiles cut from products.
        mask_quality: quality layers of products whose flagged values become missing.
    """

    sensor: str = "enmap"
    size: Annotated[int, Field(gt=0)] | None = None
    tiles_per_shard: Annotated[int, Field(gt=0)] = 400  # about 1 GB of 202x128x128 tiles, compact
    seed: int = 0
    codec: str = "compact"
    pattern: str | None = None
    limits: SceneLimits = SceneLimits()
    mask_quality: tuple[str, ...] = ()


def begin(
    source: Path, dest: Path, config: PackConfig, sensor: Sensor, labels: Labels | None, append: bool
) -> PackRecord:
    """Return the record in ``dest``, which the first process creates and all others read."""
    if dest.exists() and not (dest / RECORD).exists():
        names = [path.name for path in dest.iterdir() if is_data(path.name)]
        foreign = [name for name in names if not name.endswith(TEMPORARY) and name != LOCK and not _is_list(name)]
        if foreign and not (dest / RECORD).exists():  # another part may have started between the two checks
            raise ShardError(f"{dest}: not empty and not written by pack; choose another folder")
    if append and not (dest / RECORD).exists():
        raise ShardError(f"{dest}: nothing to append to; run pack without --append")
    codec_of(config.codec)  # reject an unknown codec before anything is written
    new = not dest.exists()
    dest.mkdir(parents=True, exist_ok=True)
    try:
        return _open_record(source, dest, config, sensor, labels, append)
    except BaseException:
        if new and not any(dest.iterdir()):
            dest.rmdir()
        raise


def _is_list(name: str) -> bool:
    """Return whether a file can be the list of a scan, which is written before the record that names it."""
    return name.startswith("sources-")


def _open_record(
    source: Path, dest: Path, config: PackConfig, sensor: Sensor, labels: Labels | None, append: bool
) -> PackRecord:
    with held(dest / LOCK):  # only one task of a job array scans the source
        sweep(dest, f"{RECORD}.*")
        sweep(dest, "sources-*")
        if not (dest / RECORD).exists():
            record = PackRecord(format=FORMAT, options=_options(config, sensor, labels), generations=[])
            record = _scan(source, dest, record, config, sensor, labels)
        else:
            record = read_record(dest)
            _same_options(dest, record, config, sensor, labels)
            if append and _is_merged(dest, record):
                record = _scan(source, dest, record, config, sensor, labels)
            else:
                _same_tiles(source, dest, record)
        return record


def _options(config: PackConfig, sensor: Sensor, labels: Labels | None) -> PackOptions:
    """Return the options for the record; optional ones are included only if they were given."""
    options = config.model_dump() | {"sensor": sensor.name, "labels": labels is not None}
    options["mask_quality"] = list(config.mask_quality)
    if not config.mask_quality:
        del options["mask_quality"]
    if not sensor.is_registered:
        options["band_table"] = sensor.to_dict()
    if labels is not None:
        label_options = {"align": labels.align, "label_field": labels.field, "label_layer": labels.layer}
        options |= {name: value for name, value in label_options.items() if value is not None}
    return PackOptions(**options)


def _same_options(dest: Path, record: PackRecord, config: PackConfig, sensor: Sensor, labels: Labels | None) -> None:
    """Raise ShardError if a folder was packed with other options."""
    options = _options(config, sensor, labels)
    _same_bands(dest, record, config.sensor, sensor)
    for name in PackOptions.model_fields:
        begun, value = getattr(record.options, name), getattr(options, name)
        if name in ("sensor", "band_table", "cut"):
            continue
        if begun != value and not (name == "size" and value is None):
            raise ShardError(
                f"{dest}: was packed with other options ({name}: {begun} then, {value} now); "
                "choose another folder or remove this one"
            )


def _same_bands(dest: Path, record: PackRecord, name: str, sensor: Sensor) -> None:
    """Raise ShardError if the sensor has other bands; its band table may have moved."""
    begun = record.options.sensor
    if record.options.band_table is None and begun in (name, sensor.name):
        return  # a registered sensor, or a folder packed before bands were recorded
    if begun != sensor.name or record.sensor != sensor:
        what = f"sensor: {begun} then, {sensor.name} now" if begun != sensor.name else f"the bands of {name} differ"
        raise ShardError(f"{dest}: was packed with other options ({what}); choose another folder or remove this one")


def _same_tiles(source: Path, dest: Path, record: PackRecord) -> None:
    """Raise ShardError if a probe of a few files, instead of a second scan, detects another source or changed tiles."""
    generation = record.generations[-1]
    if generation.probes and _probe(source, read_list(dest, generation)) != generation.probes:
        raise ShardError(f"{dest}: was packed from other tiles than {source}; choose another folder or remove this one")


def _probe(source: Path, tiles: Sequence[ListedTile]) -> str:
    return probe(source, [tile.source.path for tile in tiles])


def _is_merged(dest: Path, record: PackRecord) -> bool:
    """Return whether the last generation is already in the manifest."""
    return (dest / MANIFEST).exists() and read_manifest(dest).generations == len(record.generations)


def _scan(
    source: Path, dest: Path, record: PackRecord, config: PackConfig, sensor: Sensor, labels: Labels | None
) -> PackRecord:
    """Scan the source and add a generation with the file list, or with the bundles that must be read to make it."""
    options = record.options
    inputs = find_contents(source, config, sensor, labels, _known(dest, record), options.seed)
    size = options.size or inputs.size()
    cut = config.size is not None or options.cut or inputs.lone
    bundles = [] if labels else inputs.bundles(tile_options(config, sensor, size, cut))
    record = record.with_options(size=size)
    if bundles:
        if cut:
            record = record.with_options(cut=True)
        generation = Generation(bundles=[[bundle.name, bundle.fingerprint()] for bundle in bundles])
        record = record.with_generations([*record.generations, generation])
        write_record(dest, record)
        return record
    listed = [ListedTile(tile) for tile in inputs.tiles]
    return _add_list(dest, record, listed, Generation(probes=_probe(source, listed)))


def tile_options(config: PackConfig, sensor: Sensor, size: int, cut: bool) -> TileOptions:
    """Return how bundles read tiles; ``size`` is their height and width in pixels."""
    return TileOptions(sensor, size, config.limits, cut, config.mask_quality)


def _known(dest: Path, record: PackRecord) -> dict[str, str]:
    """Return the path of each sample key in earlier lists."""
    earlier = [old for old in record.generations if old.list_name]
    return {tile.source.key: tile.source.path for old in earlier for tile in read_list(dest, old)}


def find_contents(
    source: Path, config: PackConfig, sensor: Sensor, labels: Labels | None, taken: dict[str, str], seed: int
) -> Inputs:
    """Find the tiles or bundles to pack.

    Raises:
        SourceError: if there is nothing to pack.
        ConfigError: if an option has no effect on this source.
    """
    limits = sorted(config.limits.model_fields_set)
    option = f"--max-{limits[0].replace('_', '-')}" if limits else ""
    mask = "--mask-quality" if config.mask_quality else ""
    if labels:
        for ignored in (option, mask, "--pattern" if config.pattern else ""):
            if ignored:
                raise ConfigError(f"{ignored} has no effect with --labels: remove it")
        tiles = find_labeled(source, labels, sensor.name, seed)
        beside = find_inputs(source, sensor)
        if skipped := beside.claimed_names():
            _warn(
                f"labels apply only to plain tiles: {len(skipped)} archives or products are skipped, e.g. {skipped[0]}"
            )
        return Inputs(source, source, sensor, tiles)
    inputs = find_inputs(source, sensor, config.pattern, _warn, taken)
    if (option or mask) and not inputs.claimed:
        raise ConfigError(f"{option or mask} applies to tiles cut from products, but {source} contains none: remove it")
    if not inputs.tiles and not inputs.bundles(tile_options(config, sensor, config.size or inputs.size(), cut=False)):
        shown = ", ".join(inputs.claimed_names()[:5])
        raise SourceError(f"{source}: neither an archive of tiles nor a product among {shown}")
    return inputs


def _warn(line: str) -> None:
    logger.warning(line)


def _add_list(dest: Path, record: PackRecord, tiles: list[ListedTile], generation: Generation) -> PackRecord:
    """Save the list of a generation without tiles of earlier ones, and return the updated record."""
    earlier = [old for old in record.generations if old.list_name]
    known = _known(dest, record)
    tiles = [tile for tile in tiles if tile.source.key not in known]
    name, digest = write_list(dest, len(earlier), tiles)
    listed = {
        "tiles": len(tiles),
        "first_shard": earlier[-1].first_shard + earlier[-1].shards if earlier else 0,
        "shards": len(cut_generation(record, tiles)),
        "list_name": name,
        "list_sha256": digest,
    }
    record = record.with_generations([*earlier, generation.model_copy(update=listed)])
    write_record(dest, record)
    return record


def list_intermediate_tiles(dest: Path, must: bool) -> PackRecord:
    """Create the list of the last generation from its intermediate shards, once all bundles have been read."""
    with held(dest / LOCK):
        record = read_record(dest)
        generation = record.generations[-1]
        if generation.list_name:
            return record
        tiles = intermediate_tiles(dest, record, must)
        if tiles is None:
            return record
        if not tiles and len(record.generations) == 1:
            filtered = filtered_tiles(dest, record)
            remove_intermediate_shards(dest, 1)  # the archives can be fixed and packed again
            (dest / RECORD).unlink()
            names = ", ".join(name for name, _ in generation.bundles[:5])
            raise SourceError(f"{names}: {_why_none(record, filtered)}")
        return _add_list(dest, record, tiles, generation)


def _why_none(record: PackRecord, filtered: Mapping[str, int]) -> str:
    """Return why the bundles yielded no tiles, and the option that changes it."""
    limits, size = record.options.scene_limits, record.tile_size
    broken = sorted((count, name) for name, count in filtered.items() if name in SceneLimits.model_fields)[::-1]
    if broken:
        counts = ", ".join(f"{count} by --max-{_dashed(name)} {getattr(limits, name):g}" for count, name in broken)
        limited = [name for name, limit in limits if limit is not None]  # a tile counts for the first one exceeded
        relaxed = " ".join(f"--max-{_dashed(name)} none" for name in limited)
        return f"all {sum(count for count, _ in broken)} tiles are excluded: {counts}; include them with {relaxed}"
    if EMPTY in filtered:
        return f"they contain no tile: none of {filtered[EMPTY]} tiles has a measured pixel"
    return (
        f"they contain no tile: no archive member has the name of a raster, and no product covers a full cell of "
        f"{size}x{size} px: check them, or give a smaller --size"
    )


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def cut_generation(record: PackRecord, tiles: Sequence[ListedTile]) -> list[list[ListedTile]]:
    """Divide the list of a generation into shards with the record's options."""
    return cut_shards(tiles, record.options.tiles_per_shard, record.options.seed) if tiles else []


def describe(source: Path, dest: Path, config: PackConfig, labels: Labels | None, append: bool, workers: int) -> str:
    """Describe what `pack` would do, from the list and a few encoded tiles, without writing anything.

    Raises:
        SourceError: if there are no tiles, or none of the probed ones can be read.
    """
    sensor = find_sensor(config.sensor)
    record = read_record(dest) if append else None
    known = _known(dest, record) if record else {}
    inputs = find_contents(source, config, sensor, labels, known, config.seed)
    size = config.size or (record.tile_size if record else None) or inputs.size()
    bundles = (
        [] if labels else inputs.bundles(tile_options(config, sensor, size, config.size is not None or inputs.lone))
    )
    if bundles:
        return _describe_bundles(bundles, size)
    tiles = [tile for tile in inputs.tiles if tile.key not in known]
    if not tiles:
        return f"nothing to do: {dest} has all tiles of {source}"
    listed = [ListedTile(tile) for tile in tiles]
    shards = cut_shards(listed, config.tiles_per_shard, config.seed)
    ratio, rate = _trial(source, tiles, sensor, size, codec_of(config.codec))
    raw = len(tiles) * sensor.num_bands * size * size * 2
    free = shutil.disk_usage(next(folder for folder in (dest, *dest.absolute().parents) if folder.exists())).free
    splits = Counter(tile.split for tile in tiles)
    labeled = f" with labels ({', '.join(f'{splits[name]} {name}' for name in SPLITS)})" if labels else ""
    return (
        f"{len(tiles)} tiles{labeled} of {len({tile.location for tile in tiles})} locations -> {len(shards)} shards, "
        f"{raw / 1e9:.2f} GB -> about {raw / ratio / 1e9:.2f} GB ({ratio:.2f}x, {config.codec}), "
        f"about {raw / rate / workers / 60:.1f} minutes with {workers} workers; {free / 1e9:.1f} GB are free at {dest}"
    )


def _describe_bundles(bundles: Sequence[Bundle], size: int) -> str:
    counts: Counter[str] = Counter()
    for bundle in bundles:
        counts[bundle.kind] += len(bundle.sources) if isinstance(bundle, PlainTiles) else 1
    listed = ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in sorted(counts.items()))
    names = ", ".join(bundle.name for bundle in bundles[:5]) + (", ..." if len(bundles) > 5 else "")
    listed = listed.replace("scene to cuts", "scenes to cut")
    return f"{listed} ({names}) -> tiles of {size}x{size} px; none of them has been read yet"


def _trial(source: Path, tiles: Sequence[SourceTile], sensor: Sensor, size: int, codec: Codec) -> tuple[float, float]:
    """Measure compression ratio and pixel bytes per second and process on 8 tiles spread over the list."""
    raw = stored = 0
    begin = None
    for tile in tiles[:: max(1, len(tiles) // 8)][:8]:
        try:
            values = read_tile(source / tile.path, sensor, size).values
        except TileError:
            continue
        encoded = len(codec.encode(values))
        if begin is None:  # the first tile includes import time
            begin = time.monotonic()
        raw, stored = raw + values.nbytes, stored + encoded
    if begin is None:
        raise SourceError(f"{source}: none of the probed tiles can be read")
    return raw / stored, raw / max(time.monotonic() - begin, 1e-3)
