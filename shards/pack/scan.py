"""What is to be packed: options, the one scan of the archive, and the record that every later process reads."""

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
from shards.sensors.sensor import Sensor, get_sensor
from shards.sources.bundles import Bundle
from shards.sources.geotiff import read_tile
from shards.sources.inputs import Inputs, find_inputs
from shards.sources.labels import Labels
from shards.sources.layouts import SPLITS
from shards.sources.limits import SceneLimits
from shards.sources.pairs import find_labeled
from shards.sources.plain import EMPTY, PlainTiles, probe
from shards.sources.product import METADATA
from shards.sources.tile_names import SourceTile
from shards.sources.walk import is_data

logger = get_logger(__name__)

LOCK = "pack.lock"


class PackConfig(ConfigModel):
    """What fixes the bytes of the result.

    Attributes:
        size: of the tiles in pixels; rasters that are larger are cut. None takes the commonest among the tiles.
        codec: a preset (``raw``, ``fast``, ``compact``), the id of a codec, or its config as JSON.
        pattern: which files of the source are tiles; None goes by their names.
        limits: on tiles cut from products.
    """

    sensor: str = "enmap"
    size: Annotated[int, Field(gt=0)] | None = None
    tiles_per_shard: Annotated[int, Field(gt=0)] = 400  # about 1 GB of 202x128x128 tiles, compact
    seed: int = 0
    codec: str = "compact"
    pattern: str | None = None
    limits: SceneLimits = SceneLimits()


def begin(
    source: Path, dest: Path, config: PackConfig, sensor: Sensor, labels: Labels | None, append: bool
) -> PackRecord:
    """The record of the work in ``dest``: made by the first process that comes, read by all others."""
    if dest.exists() and not (dest / RECORD).exists():
        names = [path.name for path in dest.iterdir() if is_data(path.name)]
        foreign = [name for name in names if not name.endswith(TEMPORARY) and name != LOCK and not _is_list(name)]
        if foreign and not (dest / RECORD).exists():  # another part may have begun between the two looks
            raise ShardError(f"{dest}: not empty and not begun by pack; choose another folder")
    if append and not (dest / RECORD).exists():
        raise ShardError(f"{dest}: nothing to append to; run pack without --append")
    codec_of(config.codec)  # an unknown one is refused before anything is written
    new = not dest.exists()
    dest.mkdir(parents=True, exist_ok=True)
    try:
        return _open_record(source, dest, config, sensor, labels, append)
    except BaseException:
        if new and not any(dest.iterdir()):
            dest.rmdir()
        raise


def _is_list(name: str) -> bool:
    """Whether a file may be the list of a scan, which is written before the record that names it."""
    return name.startswith("sources-")


def _open_record(
    source: Path, dest: Path, config: PackConfig, sensor: Sensor, labels: Labels | None, append: bool
) -> PackRecord:
    with held(dest / LOCK):  # a hundred tasks of an array must not scan the archive a hundred times
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
    """Return what a record keeps of the options: optional ones only where they were given."""
    options = config.model_dump() | {"sensor": sensor.name, "labels": labels is not None}
    if not sensor.is_registered:
        options["band_table"] = sensor.to_dict()
    if labels is not None:
        given = {"align": labels.align, "label_field": labels.field, "label_layer": labels.layer}
        options |= {name: value for name, value in given.items() if value is not None}
    return PackOptions(**options)


def _same_options(dest: Path, record: PackRecord, config: PackConfig, sensor: Sensor, labels: Labels | None) -> None:
    """Raise ShardError where a folder was begun with other options."""
    wanted = _options(config, sensor, labels)
    _same_bands(dest, record, config.sensor, sensor)
    for name in PackOptions.model_fields:
        begun, value = getattr(record.options, name), getattr(wanted, name)
        if name in ("sensor", "band_table", "cut"):
            continue
        if begun != value and not (name == "size" and value is None):
            raise ShardError(
                f"{dest}: was packed from other options ({name}: {begun} then, {value} now); "
                "choose another folder or remove this one"
            )


def _same_bands(dest: Path, record: PackRecord, name: str, sensor: Sensor) -> None:
    """A band table may lie elsewhere now, but it has to have the same bands."""
    begun = record.options.sensor
    if record.options.band_table is None and begun in (name, sensor.name):
        return  # of the registry, or packed before bands were recorded
    if begun != sensor.name or record.sensor != sensor:
        what = f"sensor: {begun} then, {sensor.name} now" if begun != sensor.name else f"the bands of {name} differ"
        raise ShardError(f"{dest}: was packed from other options ({what}); choose another folder or remove this one")


def _same_tiles(source: Path, dest: Path, record: PackRecord) -> None:
    """A look at a few files instead of a second scan: another source, or tiles made anew, are noticed."""
    generation = record.generations[-1]
    if generation.probes and _probe(source, read_list(dest, generation)) != generation.probes:
        raise ShardError(f"{dest}: was packed from other tiles than {source}; choose another folder or remove this one")


def _probe(source: Path, tiles: Sequence[ListedTile]) -> str:
    return probe(source, [tile.source.path for tile in tiles])


def _is_merged(dest: Path, record: PackRecord) -> bool:
    """Whether the last generation is in the manifest already."""
    return (dest / MANIFEST).exists() and read_manifest(dest).generations == len(record.generations)


def _scan(
    source: Path, dest: Path, record: PackRecord, config: PackConfig, sensor: Sensor, labels: Labels | None
) -> PackRecord:
    """The one scan: add a generation with the file list, or with the bundles that have to be read to know it."""
    options = record.options
    inputs = _find(source, config, sensor, labels, _known(dest, record), options.seed)
    size = options.size or inputs.size()
    cut = config.size is not None or options.cut or inputs.lone
    bundles = [] if labels else inputs.bundles(size, config.limits, cut)
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


def _known(dest: Path, record: PackRecord) -> dict[str, str]:
    """The path of each sample key that was listed before."""
    earlier = [old for old in record.generations if old.list_name]
    return {tile.source.key: tile.source.path for old in earlier for tile in read_list(dest, old)}


def _find(
    source: Path, config: PackConfig, sensor: Sensor, labels: Labels | None, taken: dict[str, str], seed: int
) -> Inputs:
    """What there is to pack.

    Raises:
        SourceError: nothing.
        ConfigError: an option that does nothing with that.
    """
    limits = sorted(config.limits.model_fields_set)
    option = f"--max-{limits[0].replace('_', '-')}" if limits else ""
    if labels:
        for told in (option, "--pattern" if config.pattern else ""):
            if told:
                raise ConfigError(f"{told} does nothing with --labels: leave it out")
        tiles = find_labeled(source, labels, sensor.name, seed)
        beside = find_inputs(source, sensor)
        if others := beside.claimed_names():
            _tell(f"labels go with plain tiles: {len(others)} archives or products are left out, e.g. {others[0]}")
        return Inputs(source, source, sensor, tiles)
    inputs = find_inputs(source, sensor, config.pattern, _tell, taken)
    if limits and not inputs.claimed:
        raise ConfigError(
            f"{option} is a limit on tiles cut from EnMAP L2A products, and {source} holds none (no *{METADATA}): "
            "leave it out"
        )
    if not inputs.tiles and not inputs.bundles(config.size or inputs.size(), config.limits, cut=False):
        shown = ", ".join(inputs.claimed_names()[:5])
        raise SourceError(f"{source}: neither an archive of tiles nor a zipped EnMAP L2A product among {shown}")
    return inputs


def _tell(line: str) -> None:
    logger.warning(line)


def _add_list(dest: Path, record: PackRecord, tiles: list[ListedTile], generation: Generation) -> PackRecord:
    """Save the list of a generation without the tiles of earlier ones, and return the record with it."""
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
    """Make the list of the last generation from its intermediate shards, once all bundles are read."""
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
            remove_intermediate_shards(dest, 1)  # nothing was begun: the archives can be mended and packed again
            (dest / RECORD).unlink()
            names = ", ".join(name for name, _ in generation.bundles[:5])
            raise SourceError(f"{names}: {_why_none(record, filtered)}")
        return _add_list(dest, record, tiles, generation)


def _why_none(record: PackRecord, filtered: Mapping[str, int]) -> str:
    """Why bundles gave no tile, and the option that changes it."""
    limits, size = record.options.scene_limits, record.tile_size
    broken = sorted((count, name) for name, count in filtered.items() if name in SceneLimits.model_fields)[::-1]
    if broken:
        counts = ", ".join(f"{count} by --max-{_dashed(name)} {getattr(limits, name):g}" for count, name in broken)
        given = [name for name, limit in limits if limit is not None]  # a tile counts for the first that it breaks
        relaxed = " ".join(f"--max-{_dashed(name)} none" for name in given)
        return f"all {sum(count for count, _ in broken)} tiles are left out: {counts}; take all of them with {relaxed}"
    if EMPTY in filtered:
        return f"no tile in them: none of {filtered[EMPTY]} tiles holds a measured pixel"
    return (
        f"no tile in them: no raster by its name in an archive, no cell of {size}x{size} px that lies wholly in a "
        "product: look into them, or give a smaller --size"
    )


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def cut_generation(record: PackRecord, tiles: Sequence[ListedTile]) -> list[list[ListedTile]]:
    """The shards of a generation's list, under the record's options."""
    return cut_shards(tiles, record.options.tiles_per_shard, record.options.seed) if tiles else []


def describe(source: Path, dest: Path, config: PackConfig, labels: Labels | None, append: bool, workers: int) -> str:
    """What `pack` would do, from the list and a few encoded tiles; nothing is written.

    Raises:
        SourceError: no tiles, or none of the probed ones can be read.
    """
    sensor = get_sensor(config.sensor)
    record = read_record(dest) if append else None
    known = _known(dest, record) if record else {}
    inputs = _find(source, config, sensor, labels, known, config.seed)
    size = config.size or (record.tile_size if record else None) or inputs.size()
    bundles = [] if labels else inputs.bundles(size, config.limits, config.size is not None or inputs.lone)
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
    told = ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in sorted(counts.items()))
    names = ", ".join(bundle.name for bundle in bundles[:5]) + (", ..." if len(bundles) > 5 else "")
    told = told.replace("scene to cuts", "scenes to cut")
    return f"{told} ({names}) -> tiles of {size}x{size} px; none of them is read yet"


def _trial(source: Path, tiles: Sequence[SourceTile], sensor: Sensor, size: int, codec: Codec) -> tuple[float, float]:
    """Ratio, and bytes of pixels per second and process, measured on 8 tiles spread over the list."""
    raw = stored = 0
    begin = None
    for tile in tiles[:: max(1, len(tiles) // 8)][:8]:
        try:
            values = read_tile(source / tile.path, sensor, size).values
        except TileError:
            continue
        encoded = len(codec.encode(values))
        if begin is None:  # the first one pays for imports
            begin = time.monotonic()
        raw, stored = raw + values.nbytes, stored + encoded
    if begin is None:
        raise SourceError(f"{source}: none of the probed tiles can be read")
    return raw / stored, raw / max(time.monotonic() - begin, 1e-3)
