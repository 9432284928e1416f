"""Intermediate shards: packing of bundles (archives, products) without unpacking them to disk.

A bundle yields its tiles in the order of its bytes, but a shard needs them in the order of the permuted list. So each
bundle is read once as a stream, and its tiles are encoded in order of arrival into intermediate shards of a few hundred
tiles in a separate folder. When all bundles have been read, the list is known, and the shards are assembled by copying
encoded bytes. A killed run keeps its finished intermediate shards.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError

from shards.config import StrictModel
from shards.errors import ShardError, TileError
from shards.files.atomic import atomic_open, sweep, write_atomic
from shards.files.untrusted import read_json_value, read_npy
from shards.format.manifest import Rejected, ShardIndex, first_problem, read_json
from shards.format.statistics import BandSums
from shards.format.table import QUALITY
from shards.pack.listing import ListedTile
from shards.pack.record import PackRecord
from shards.pack.writer import Sample, checksum, encode_sample, index_path, write_shard
from shards.sources.bundles import Bundle
from shards.sources.geotiff import Tile
from shards.sources.tile_names import SourceTile
from shards.workers import counters, run_jobs

TILES_A_SHARD = 256


class _DoneMark(StrictModel):
    """A completely read bundle: unusable tiles (location, timestamp, path, reason) and counts of filtered ones."""

    bundle: str
    rejected: list[Annotated[list[str], Field(min_length=4, max_length=4)]]
    filtered: dict[str, int]


def intermediate_folder(dest: Path, generation: int) -> Path:
    """Return the folder for the intermediate shards of a generation; it can be removed once the manifest exists."""
    return dest / f"spool-{generation:03d}"


def write_intermediate_shards(bundles: Sequence[Bundle], dest: Path, record: PackRecord, workers: int) -> None:
    """Encode all tiles of the bundles into intermediate shards, skipping bundles that are already finished."""
    folder = intermediate_folder(dest, len(record.generations) - 1)
    folder.mkdir(exist_ok=True)
    jobs = [(bundle, folder, record) for bundle in bundles if not _done_mark(folder, bundle.name).exists()]
    for _ in run_jobs(_read_bundle, jobs, workers, None, 0, "read"):
        pass


def _read_bundle(bundle: Bundle, folder: Path, record: PackRecord) -> None:
    stem = _stem(bundle.name)
    sweep(folder, f"{stem}*")
    indexes = sorted(folder.glob(f"{stem}-*.index.json"))
    known = {key for index in indexes for key in read_json(index, ShardIndex).tiles.key}
    sensor, codec = record.sensor, record.codec
    rejected: dict[str, list[str]] = {}

    def encoded() -> Iterator[Sample]:
        for source, outcome in bundle.tiles(known, folder / stem):
            tile = _checked(outcome, record)
            rejected.pop(source.key, None)  # a repeated tile replaces the earlier one
            if isinstance(tile, TileError):
                rejected[source.key] = [source.location, source.timestamp, source.path, str(tile)]
                continue
            sample = encode_sample(source, tile, None, sensor, codec)
            counters().add(1, tile.values.nbytes, len(sample.tile))
            yield sample

    samples = encoded()
    for number, first in enumerate(samples, start=len(indexes)):  # no empty shard
        chunk = itertools.chain([first], itertools.islice(samples, TILES_A_SHARD - 1))
        _write_shard(folder / f"{stem}-{number:05d}.tar", chunk, sensor.num_bands)
    mark = {"bundle": bundle.name, "rejected": [*rejected.values()], "filtered": bundle.filtered}
    write_atomic(_done_mark(folder, bundle.name), json.dumps(mark) + "\n")


def _checked(tile: Tile | TileError, record: PackRecord) -> Tile | TileError:
    """Return the tile, or a `TileError` if a plugin's bundle yields values that do not fit into the dataset."""
    shape = (record.sensor.num_bands, record.tile_size, record.tile_size)
    if isinstance(tile, TileError) or (tile.values.shape == shape and tile.values.dtype == np.int16):
        return tile
    expected = f"int16 of {shape[0]} bands x {shape[1]} x {shape[2]} px"
    return TileError(f"{tile.values.dtype} values of shape {tile.values.shape}, expected {expected}")


def _write_shard(tar: Path, samples: Iterable[Sample], bands: int) -> None:
    """Write an intermediate shard, with its tiles' sums before its index, which marks it as complete."""
    sums: list[list[list[int]]] = []

    def with_sums() -> Iterator[Sample]:
        for sample in samples:
            sums.append([getattr(sample.sums, name) for name in _SUMS])
            yield sample
        with atomic_open(_sums_path(tar)) as file:
            np.save(file, np.asarray(sums, dtype=np.int64), allow_pickle=False)

    write_shard(tar, with_sums(), bands)


_SUMS = ("count", "total", "squares", "low", "high")


def _sums_path(tar: Path) -> Path:
    return tar.with_suffix(".sums.npy")


def _stem(name: str) -> str:
    """Return the file name prefix of a bundle's intermediate shards: short, and unique per bundle."""
    return "bundle-" + hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]


def _done_mark(folder: Path, name: str) -> Path:
    return folder / f"{_stem(name)}.done.json"


def intermediate_tiles(dest: Path, record: PackRecord, must: bool) -> list[ListedTile] | None:
    """Return the sorted tiles of all bundles; if some are not read yet, return None or (``must``) raise an error."""
    folder = intermediate_folder(dest, len(record.generations) - 1)
    tiles: dict[str, ListedTile] = {}
    for name, _ in record.generations[-1].bundles:
        mark = _done_mark(folder, name)
        if not mark.exists():
            if must:
                raise ShardError(f"{dest}: {name} has not been read yet: run its part again")
            return None
        for tile in _bundle_tiles(folder, name, mark):
            earlier = tiles.setdefault(tile.source.key, tile)
            if earlier is not tile:
                raise ShardError(
                    f"{earlier.source.path} and {tile.source.path} have the same sample key '{tile.source.key}': "
                    "remove or rename one of them"
                )
    return sorted(tiles.values(), key=lambda tile: tile.source)


def _bundle_tiles(folder: Path, name: str, mark: Path) -> Iterable[ListedTile]:
    """Return the tiles of a bundle; for duplicate keys the last one."""
    tiles: dict[str, ListedTile] = {}
    for index in sorted(folder.glob(f"{_stem(name)}-*.index.json")):
        columns = read_json(index, ShardIndex).tiles
        tar = index.name.removesuffix(".index.json")
        rows = zip(columns.location, columns.timestamp, columns.scene, columns.date, strict=True)
        for row, (location, timestamp, scene, date) in enumerate(rows):
            source = SourceTile(location, timestamp, name, scene, date or "")
            tiles[source.key] = ListedTile(source, intermediate=f"{tar}:{row}")
    for location, timestamp, path, reason in _read_mark(mark).rejected:
        source = SourceTile(location, timestamp, path)
        tiles[source.key] = ListedTile(source, rejected=reason)
    return tiles.values()


def filtered_tiles(dest: Path, record: PackRecord) -> dict[str, int]:
    """Return the number of filtered tiles of the last generation by the limit that they exceed."""
    folder, filtered = intermediate_folder(dest, len(record.generations) - 1), Counter[str]()
    for mark in sorted(folder.glob("*.done.json")):
        filtered.update(_read_mark(mark).filtered)
    return dict(filtered)


def _read_mark(path: Path) -> _DoneMark:
    try:
        return _DoneMark.model_validate(read_json_value(path.read_bytes()))
    except ValueError as error:  # includes ValidationError
        what = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise ShardError(f"{path}: damaged ({what}); remove {path.parent} and pack again") from None


def remove_intermediate_shards(dest: Path, generations: int) -> dict[str, int]:
    """Remove the intermediate shards of a finished dataset; returns filtered-tile counts by limit."""
    filtered: Counter[str] = Counter()
    for number in range(generations):
        folder = intermediate_folder(dest, number)
        for mark in sorted(folder.glob("*.done.json")):
            filtered.update(_read_mark(mark).filtered)
        shutil.rmtree(folder, ignore_errors=True)
    return dict(filtered)


class IntermediateReader:
    """A reader of the encoded samples in the intermediate shards of a generation."""

    def __init__(self, dest: Path, generation: int) -> None:
        self._folder = intermediate_folder(dest, generation)
        self._indexes: dict[str, tuple[ShardIndex, np.ndarray]] = {}

    def samples(self, tiles: Sequence[ListedTile]) -> Iterator[Sample | Rejected]:
        """Yield the sample of each listed tile; raises ShardError if an intermediate shard is missing or damaged."""
        for tile in tiles:
            if tile.rejected:
                yield Rejected(path=tile.source.path, reason=tile.rejected)
                continue
            shard, _, row = tile.intermediate.rpartition(":")
            sample = self._sample(shard, int(row))
            counters().add(1, 0, len(sample.tile))
            yield sample

    def _sample(self, shard: str, row: int) -> Sample:
        tar = self._folder / f"{shard}.tar"
        if shard not in self._indexes:
            self._indexes[shard] = read_json(index_path(tar), ShardIndex), _read_sums(_sums_path(tar))
        index, sums = self._indexes[shard]
        columns = index.tiles
        encoded = _read(tar, columns.offset[row], columns.length[row])
        if checksum(encoded) != columns.checksum[row]:
            raise ShardError(f"{tar}: tile '{columns.key[row]}' fails its checksum; remove {tar.parent} and pack again")
        header = -(-columns.length[row] // 512) * 512 + columns.offset[row]  # the description follows the tile
        size = int(_read(tar, header + 124, 11), 8)
        names = ("key", "location", "timestamp", "scene", "split", "date", "lon", "lat", *QUALITY)
        return Sample(
            key=columns.key[row],
            tile=encoded,
            description=_read(tar, header + 512, size),
            mask=b"",
            sums=BandSums(*(column.tolist() for column in sums[row])),
            row={name: getattr(columns, name)[row] for name in names},
        )


def _read_sums(path: Path) -> np.ndarray:
    try:
        return read_npy(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: can't be read ({error}); remove {path.parent} and pack again") from None


def _read(path: Path, offset: int, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
    if len(data) != length:
        raise ShardError(f"{path}: cut short; remove it and its index, and pack again")
    return data
