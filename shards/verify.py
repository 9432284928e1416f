"""`verify`: read every byte of a shard folder again, and compare tiles with the files that they came from.

What the formats promise is checked from the bytes up: hashes, tar members where the index says, tiles
that decode to the statistics that were written down, one table that repeats the indexes. Anything that a
damaged file provokes becomes a line that names it.
"""

import hashlib
import json
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import keyed, table
from shards.atomic import TEMPORARY
from shards.codec import build_codec, is_foreign
from shards.errors import ForgeError, ShardError
from shards.geotiff import read_mask, read_tile
from shards.listing import read_record
from shards.manifest import (
    MANIFEST,
    Manifest,
    ShardEntry,
    ShardIndex,
    Sums,
    band_sums,
    content_hash,
    read_json,
    read_manifest,
)
from shards.sensors import get_sensor
from shards.statistics import BandSums
from shards.workers import counters, run_jobs
from shards.writer import checksum, index_path


@dataclass(frozen=True)
class Sources:
    """Where tiles and label tiles were packed from, to compare with; None compares nothing."""

    tiles: Path | None = None
    labels: Path | None = None


def verify(folder: Path, sources: Sources, sample: float, workers: int) -> int:
    """Check a shard folder and print a line for every problem; returns 0, or 1 where there is one.

    Args:
        sample: share of the tiles to read, chosen by their keys; below 1 whole-file hashes are left out.

    Raises:
        ShardError: there is no readable manifest, so nothing can be told.
    """
    begin = time.monotonic()
    manifest = read_manifest(folder)
    problems, notes = list(_check_dataset(folder, manifest)), list(_strangers(folder, manifest))
    jobs = [(folder, manifest, number, sources, sample) for number in range(len(manifest.shards))]
    tiles = size = 0
    for result in run_jobs(check_shard, jobs, workers, round(manifest.tiles * sample), 0, "verify"):
        problems += result.problems
        tiles, size = tiles + result.tiles, size + result.size
    if sources.tiles and _has_bundles(folder):
        notes.append("tiles out of archives and products are not compared with their sources")
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    for line in problems:
        print(f"problem: {line}", file=sys.stderr)
    seconds = time.monotonic() - begin
    compared = f", compared with {sources.tiles}" if sources.tiles else ""
    skipped = "" if sample == 1 else " (a sample: whole-file hashes were not checked)"
    print(
        f"{folder}: {tiles} of {manifest.tiles} tiles in {len(manifest.shards)} shards read{compared}{skipped}, "
        f"{size / 1e9:.2f} GB in {seconds:.1f} s ({size / seconds / 1e6:.0f} MB/s): "
        + (f"{len(problems)} problems" if problems else "no problems")
    )
    return 1 if problems else 0


@dataclass(frozen=True)
class ShardResult:
    """What was found in one shard: problem lines, tiles looked at, bytes read."""

    problems: list[str]
    tiles: int
    size: int


def check_shard(folder: Path, manifest: Manifest, number: int, sources: Sources, sample: float) -> ShardResult:
    """All checks of one shard, its index and its rows of the table."""
    problems: list[str] = []
    entry = manifest.shards[number]
    tar = folder / entry.name
    try:
        index = _checked_index(tar, entry)
    except ShardError as error:
        return ShardResult([str(error)], 0, 0)
    keys = index.tiles.key
    chosen = [row for row in range(len(keys)) if sample == 1 or _is_chosen(keys[row], sample)]
    try:
        problems += _check_file(tar, entry, whole=sample == 1)
        if is_foreign(manifest.codec):
            problems += _check_foreign_members(tar, index)
        else:
            problems += _check_members(tar, index)
        problems += _check_tiles(tar, manifest, index, chosen, sources)
    except (OSError, ForgeError) as error:
        problems.append(f"{tar}: {error}")
    except Exception as error:  # whatever damage provokes is a finding, not a crash
        problems.append(f"{tar}: {type(error).__name__}: {error}")
    size = tar.stat().st_size if sample == 1 and tar.exists() else sum(index.tiles.length[row] for row in chosen)
    return ShardResult(problems, len(chosen), size)


def _is_chosen(key: str, sample: float) -> bool:
    return keyed.key("verify", key) < sample * 2**64


def _check_dataset(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Manifest, table, indexes and statistics against each other."""
    columns, sums = [], BandSums.empty(manifest.tile_shape[0])
    for entry in manifest.shards:
        try:
            index = _checked_index(folder / entry.name, entry)
        except ShardError as error:
            yield str(error)
            return  # the table can't be made again without it
        columns.append(index.tiles.model_dump())
        sums.add(band_sums(index.sums))
    path = folder / manifest.table
    stored = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(stored).hexdigest() != manifest.table_sha256:
        yield f"{path}: not the table that the manifest names; run `python -m shards merge {folder}`"
    elif stored != table.to_bytes(table.join(columns, range(len(columns)))):
        yield f"{path}: does not repeat the shards' indexes; run `python -m shards merge {folder}`"
    wanted = content_hash(manifest.shards, manifest.codec, manifest.sensor)
    if manifest.content_hash != wanted:
        yield f"{folder / MANIFEST}: its content hash is not that of its shards"
    if Sums(**vars(sums)) != manifest.sums:
        yield f"{folder / MANIFEST}: its sums are not those of its shards"
    if (manifest.mean, manifest.std) != (sums.mean().tolist(), sums.std().tolist()):
        yield f"{folder / MANIFEST}: mean and standard deviation do not follow from its sums"
    for name, values in (("mu.npy", manifest.mu), ("sigma.npy", manifest.sigma)):
        yield from _check_statistics(folder / name, values)


def _check_statistics(path: Path, values: np.ndarray) -> Iterator[str]:
    try:
        stored = table.read_npy(path.read_bytes())
    except (OSError, ValueError) as error:
        yield f"{path}: can't be read: {error}"
        return
    if stored.dtype != values.dtype or not np.array_equal(stored, values):
        yield f"{path}: not the manifest's statistics"


def _strangers(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files that belong to no dataset, most of them left by killed runs."""
    known = {entry.name for entry in manifest.shards}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(TEMPORARY):
            yield f"{path}: left by an unfinished run; the next pack or merge removes it"
        elif path.suffix == ".tar" and path.name not in known:
            yield f"{path}: a tar that the manifest does not name"


def _has_bundles(folder: Path) -> bool:
    try:
        return any(generation.bundles for generation in read_record(folder).generations)
    except ShardError:
        return False  # an indexed folder, not a packed one


def _checked_index(tar: Path, entry: ShardEntry) -> ShardIndex:
    path = index_path(tar)
    index = read_json(path, ShardIndex)
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry.index_sha256:
        raise ShardError(f"{path}: not the index that the manifest names")
    return index


def _check_file(tar: Path, entry: ShardEntry, whole: bool) -> Iterator[str]:
    if not tar.exists():
        yield f"{tar}: missing; copy or pack it again"
        return
    size = tar.stat().st_size
    if size != entry.size:
        yield f"{tar}: {size} bytes where {entry.size} were written; copy or pack it again"
        return
    if whole:
        with open(tar, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                yield f"{tar}: its SHA-256 is not the manifest's: damaged; copy or pack it again"


def _check_members(tar: Path, index: ShardIndex) -> Iterator[str]:
    """A stock tar reader finds what the index says, and descriptions say what the index says."""
    columns = index.tiles
    expected: dict[str, tuple[int, int]] = {}
    for row, key in enumerate(columns.key):
        expected[f"{key}.tile"] = columns.offset[row], columns.length[row]
        if columns.mask_length[row]:
            expected[f"{key}.mask.npy"] = columns.mask_offset[row], columns.mask_length[row]
    rows = {f"{key}.json": row for row, key in enumerate(columns.key)}
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            if member.name in rows:
                yield from _check_description(tar, archive, member, columns.model_dump(), rows.pop(member.name))
            elif expected.pop(member.name, None) != (member.offset_data, member.size):
                yield f"{tar}: member '{member.name}' at byte {member.offset_data} is not where the index says"
    for name in (*expected, *rows):
        yield f"{tar}: member '{name}' is missing"


def _check_foreign_members(tar: Path, index: ShardIndex) -> Iterator[str]:
    """A stock tar reader finds a member wherever the index says that a tile lies."""
    with tarfile.open(tar, "r:") as archive:
        found = {member.offset_data: member.size for member in archive}
    for key, offset, length in zip(index.tiles.key, index.tiles.offset, index.tiles.length, strict=True):
        if found.get(offset) != length:
            yield f"{tar}: tile '{key}' at byte {offset} is no member of {length} bytes"


def _check_description(
    tar: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, columns: dict[str, list], row: int
) -> Iterator[str]:
    file = archive.extractfile(member)
    where = f"{tar}: member '{member.name}' at byte {member.offset_data}"
    try:
        description: dict[str, Any] = json.loads(file.read() if file else b"")
        differs = [name for name in description if name in columns and description[name] != columns[name][row]]
    except (ValueError, TypeError) as error:
        yield f"{where}: not a description: {error}"
        return
    if differs:
        yield f"{where}: {differs[0]} is not what the index says"


def _check_tiles(
    tar: Path, manifest: Manifest, index: ShardIndex, chosen: list[int], sources: Sources
) -> Iterator[str]:
    """Checksums, decoding, statistics, and the source files where they are given."""
    codec, columns = build_codec(manifest.codec), index.tiles
    sums = BandSums.empty(manifest.tile_shape[0])
    values = np.empty(manifest.tile_shape, dtype=np.int16)
    whole = len(chosen) == len(columns.key)
    with open(tar, "rb") as file:
        for row in chosen:
            where = f"{tar}: tile '{columns.key[row]}' at byte {columns.offset[row]}"
            encoded = _read(file, columns.offset[row], columns.length[row])
            counters().add(1, values.nbytes, len(encoded))
            if checksum(encoded) != columns.checksum[row]:
                yield f"{where} fails its checksum"
                whole = False
                continue
            try:
                codec.decode(encoded, values)
            except ShardError as error:
                yield f"{where}: {error}"
                whole = False
                continue
            sums.add(BandSums.of(values))
            mask = _read(file, columns.mask_offset[row], columns.mask_length[row])
            if mask and checksum(mask) != columns.mask_checksum[row]:
                yield f"{where}: its label tile fails its checksum"
            if not is_foreign(manifest.codec):
                source = _source(file, columns.offset[row], columns.length[row])
                yield from _compare(where, source, values, mask, manifest, sources)
    if whole and Sums(**vars(sums)) != index.sums:
        yield f"{tar}: its tiles have other statistics than its index"


def _compare(
    where: str, source: str, values: np.ndarray, mask: bytes, manifest: Manifest, sources: Sources
) -> Iterator[str]:
    """A tile and its label tile against the files that they came from."""
    if sources.tiles and "!" not in source:  # members of archives and products are read as streams, not one by one
        try:
            sensor = get_sensor(manifest.sensor)
            same = np.array_equal(read_tile(sources.tiles / source, sensor, manifest.tile_shape[1]).values, values)
        except ForgeError as error:
            yield f"{where}: its source can't be read: {error}"
            return
        if not same:
            yield f"{where}: differs from its source {sources.tiles / source}"
    if sources.labels and mask:
        path = sources.labels / source
        if not path.exists():  # labels beside the sensor's folder
            path = sources.labels / source.partition("/")[2]
        try:
            same = np.array_equal(read_mask(path), table.read_npy(mask))
        except ForgeError as error:
            yield f"{where}: its label tile's source can't be read: {error}"
            return
        if not same:
            yield f"{where}: its label tile differs from {path}"


def _source(file: Any, offset: int, length: int) -> str:
    """Path of a tile's source, from the JSON member that follows the tile."""
    header = offset + -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    member = tarfile.TarInfo.frombuf(_read(file, header, tarfile.BLOCKSIZE), "utf-8", "strict")
    return str(json.loads(_read(file, header + tarfile.BLOCKSIZE, member.size))["source"])


def _read(file: Any, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise ShardError(f"cut short: {length} bytes wanted at byte {offset}")
    return data
