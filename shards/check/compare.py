"""`verify --source`: comparison of stored tiles with the files, archives and products that they came from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ForgeError, ShardError, SourceError, TileError
from shards.format.codec_registry import build_codec
from shards.format.error_bounds import error_bounds, violation
from shards.format.manifest import Manifest, sensor_of
from shards.order.random_bits import fold_in
from shards.pack.record import RECORD, PackRecord, read_record
from shards.read.reader import ShardReader
from shards.sensors.sensor import Sensor
from shards.sources.bundles import Bundle, TileOptions
from shards.sources.geotiff import Tile, read_tile
from shards.sources.inputs import find_bundles
from shards.sources.labels import PIXELS, Labels, make_grid
from shards.sources.pairs import find_label
from shards.sources.plain import PlainTiles
from shards.workers import counters


@dataclass(frozen=True)
class Sources:
    """Source folders of tiles and label tiles to compare with; None skips the comparison."""

    tiles: Path | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What to check a dataset against.

    Attributes:
        sensor: sensor for reading source files, as recorded by `pack`, with all bands of the product.
        sample: fraction of the tiles to check, selected by their keys.
    """

    folder: Path
    manifest: Manifest
    sensor: Sensor
    sources: Sources
    sample: float
    labels: Labels | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.manifest.tile_shape)

    def chooses(self, key: str) -> bool:
        return self.sample == 1 or fold_in("verify", key) < self.sample * 2**64

    def read_source(self, path: Path) -> np.ndarray:
        return read_tile(path, self.sensor, self.shape[1]).values


@dataclass
class Findings:
    """Results of checks: problem lines, notes, tiles read, tiles compared with their sources, bytes read."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tiles: int = 0
    compared: int = 0
    size: int = 0

    def add(self, other: "Findings") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @contextmanager
    def guard(self, where: object) -> Iterator[None]:
        """Turn any error that damage causes in the block into a problem line."""
        try:
            yield
        except ForgeError as error:
            self.problems.append(str(error) if str(where) in str(error) else f"{where}: {error}")
        except Exception as error:
            self.problems.append(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}")


def source_sensor(folder: Path, manifest: Manifest) -> Sensor:
    """Return the sensor of a dataset, with all bands of the product if the record of `pack` has them."""
    stored = sensor_of(manifest)
    try:
        recorded = read_record(folder).sensor
    except ForgeError:  # no record, a damaged one (reported elsewhere), or a missing band table
        return stored
    return recorded if recorded.wavelength_nm == stored.wavelength_nm else stored


def compare(where: str, path: Path, stored: np.ndarray, bounds: np.ndarray | int, read: Any) -> Iterator[str]:
    """Yield a problem line if ``read(path)`` fails or differs from the stored tile by more than the codec's bounds."""
    try:
        differs = violation(read(path), stored, bounds)
    except TileError as error:
        yield f"{where}: its source can't be read: {error}"
        return
    if differs:
        yield f"{where}: differs from its source {path}: {differs}"


def open_labels(folder: Path, path: Path | None) -> Labels | None:
    """Open the labels at ``path`` with the options that `pack` used for ``folder``."""
    if path is None:
        return None
    if not (folder / RECORD).exists():
        return Labels(path)
    options = read_record(folder).options
    return Labels(path, None, options.align, options.label_field, options.label_layer)


def compare_label(plan: Plan, where: str, stored: np.ndarray, described: dict[str, Any]) -> Iterator[str]:
    """Yield a problem line if the label of a tile can't be read or differs from the stored one.

    Args:
        described: the tile's description, with its source and georeference.
    """
    labels, source = plan.labels, str(described["source"])
    if labels is None:
        return
    folder = source.partition("/")[0]
    prefix = f"{folder}/" if folder in (plan.manifest.sensor, "images") else ""
    grid = make_grid(stored.shape, described.get("crs"), tuple(described.get("transform") or PIXELS))
    try:
        name = "" if labels.one_file else find_label(labels.path, source, prefix)
        codes = labels.read(name, grid)
    except (TileError, SourceError) as error:
        yield f"{where}: its label can't be read: {error}"
        return
    if not np.array_equal(codes, stored):
        yield f"{where}: differs from its source {labels.path / name}"


def check_rejected(plan: Plan, source: Path, aside: dict[str, str]) -> Iterator[str]:
    """Yield a problem line for each file that was set aside but can be used now."""
    for path, reason in aside.items():
        if "!" in path or not plan.chooses(path):
            continue
        try:
            plan.read_source(source / path)
        except TileError:
            continue
        yield f"{source / path}: was set aside when packing ({reason}), but can be used now"


def bundle_jobs(
    plan: Plan, record: PackRecord, bundled: dict[str, set[str]], aside: set[str], findings: Findings
) -> list[tuple]:
    """Return jobs for `compare_bundle`: the archives and products among the sources that tiles came from."""
    if plan.sources.tiles is None:
        return []
    options = record.options
    try:
        read = TileOptions(plan.sensor, plan.shape[1], options.scene_limits, options.cut, tuple(options.mask_quality))
        bundles_now = find_bundles(plan.sources.tiles, read, options.pattern)
    except SourceError as error:
        findings.problems.append(str(error))
        return []
    bundles = {bundle.name: bundle for bundle in bundles_now}
    for name in sorted(bundled.keys() - bundles.keys()):
        findings.notes.append(f"{name}: not in {plan.sources.tiles}: its {len(bundled[name])} tiles were not compared")
    return [
        (plan, bundles[name], keys, aside)
        for name, keys in bundled.items()
        if name in bundles and not isinstance(bundles[name], PlainTiles)  # plain files are compared shard by shard
    ]


def compare_bundle(plan: Plan, bundle: Bundle, keys: set[str], aside: set[str]) -> Findings:
    """Read an archive or a product again, front to back, and compare its tiles with the stored ones.

    Args:
        keys: keys of the tiles that were packed from it.
        aside: paths of tiles that were set aside.
    """
    findings = Findings()
    with findings.guard(bundle.name):
        reader = ShardReader(plan.folder)
        rows, values = {reader.key(row): row for row in range(len(reader))}, np.empty((1, *plan.shape), np.int16)
        chosen = {key for key in keys if plan.chooses(key)}
        compared: set[str] = set()
        problems: dict[str, list[str]] = {}  # by key: a repeated tile replaces the earlier one
        for source, tile in bundle.tiles(keys - chosen):
            counters().add(1, values.nbytes, 0)
            if source.key in chosen:
                compared.add(source.key)
                problems[source.key] = list(_compare_stored(reader, rows[source.key], source.path, tile, values))
            elif source.key not in rows and plan.chooses(source.path):
                how = "was set aside when packing, but can be used now" if source.path in aside else "was not packed"
                problems[source.key] = [f"{source.path}: {how}"] if isinstance(tile, Tile) else []
        findings.problems += [line for lines in problems.values() for line in lines]
        findings.compared += len(compared)
        missing = sorted(chosen - compared)
        findings.problems += [
            f"{bundle.name}: tile '{key}' was packed from it, but is no longer in it" for key in missing
        ]
    return findings


def _compare_stored(
    reader: ShardReader, row: int, source: str, tile: Tile | TileError, values: np.ndarray
) -> Iterator[str]:
    shard, offset = reader.manifest.shards[reader.table["shard"][row]], reader.table["offset"][row]
    where = f"{Path(reader.location) / shard.name}: tile '{reader.key(row)}' at byte {offset}"
    try:
        reader.read([row], values)
        bounds = error_bounds(build_codec(reader.manifest.codec), reader.read_encoded(row))
    except ShardError:
        return  # already reported by check_shard
    if isinstance(tile, TileError):
        yield f"{where}: its source can't be read: {tile}"
    elif differs := violation(tile.values, values[0], bounds):
        yield f"{where}: differs from its source {source}: {differs}"
