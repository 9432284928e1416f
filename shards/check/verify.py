"""`verify`: read every byte of a shard folder again, and compare tiles with the files that they came from.

What the formats promise is checked from the bytes up: hashes, tar members where the index says, tiles
that decode to the statistics that were written down, one table that repeats the indexes, and no listed
tile lost on the way. Anything that a damaged file provokes becomes a line that names it.
"""

import hashlib
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from shards.check.compare import (
    Findings,
    Plan,
    Sources,
    bundle_jobs,
    check_rejected,
    compare,
    compare_bundle,
    compare_label,
    open_labels,
    source_sensor,
)
from shards.console import get_logger
from shards.errors import ShardError, SourceError
from shards.files.atomic import TEMPORARY
from shards.files.names import inner_path
from shards.files.untrusted import read_json_value, read_npy
from shards.format import table
from shards.format.codec_registry import build_codec, is_foreign
from shards.format.manifest import (
    MANIFEST,
    ShardEntry,
    ShardIndex,
    Sums,
    TileColumns,
    band_sums,
    content_hash,
    read_json,
    read_manifest,
    sensor_of,
    to_json,
)
from shards.format.statistics import BandSums
from shards.pack.listing import read_list
from shards.pack.merge import shard_name
from shards.pack.record import RECORD, PackRecord, read_record
from shards.pack.writer import checksum, index_path
from shards.workers import counters, run_jobs

logger = get_logger(__name__)


def verify(folder: Path, sources: Sources, sample: float, workers: int) -> int:
    """Check a shard folder and print a line for every problem; returns 0, or 1 where there is one.

    Args:
        sample: share of the tiles to read, chosen by their keys; below 1 whole-file hashes are left out.

    Raises:
        ShardError: there is no manifest, so nothing can be told.
        SourceError: no such sources.
    """
    begin = time.monotonic()
    for path in (sources.tiles, sources.labels):
        if path is not None and not os.path.exists(path):
            raise SourceError(f"{path}: no such directory of tiles, or one that can't be read")
    try:
        manifest = read_manifest(folder)
    except ShardError as error:
        if not (folder / MANIFEST).is_file():
            raise
        print(f"problem: {error}", file=sys.stderr)
        print(f"{folder}: 1 problem: nothing else can be told without the manifest")
        return 1
    labels = open_labels(folder, sources.labels)
    plan, found = Plan(folder, manifest, source_sensor(folder, manifest), sources, sample, labels), Findings()
    indexes = _read_indexes(plan, found)
    found.problems += _check_dataset(plan, indexes)
    bundles = _check_history(plan, indexes, found)
    jobs = [(plan, number) for number in range(len(manifest.shards))]
    for result in run_jobs(check_shard, jobs, workers, round(manifest.tiles * sample), 0, "verify"):
        found.add(result)
    for result in run_jobs(compare_bundle, bundles, workers, None, 0, "compare"):
        found.add(result)
    if sources.tiles and found.tiles and not found.compared:
        found.problems.append(f"{sources.tiles}: no tile could be compared with it: not what was packed")
    _report(plan, found, time.monotonic() - begin)
    return 1 if found.problems else 0


def _report(plan: Plan, found: Findings, seconds: float) -> None:
    for line in found.notes:
        logger.warning(line)
    for line in found.problems:
        print(f"problem: {line}", file=sys.stderr)
    count, source = len(found.problems), plan.sources.tiles
    print(
        f"{plan.folder}: {found.tiles} of {plan.manifest.tiles} tiles in {len(plan.manifest.shards)} shards read"
        + (f", {found.compared} compared with {source}" if source else "")
        + ("" if plan.sample == 1 else " (a sample: whole-file hashes were not checked)")
        + f", {found.size / 1e9:.3f} GB in {seconds:.1f} s ({found.size / seconds / 1e9:.3f} GB/s): "
        + f"{count or 'no'} problem{'' if count == 1 else 's'}"
    )


# ---- the dataset's own files ----


def _read_indexes(plan: Plan, found: Findings) -> list[ShardIndex]:
    """The indexes that are what the manifest names, in its order; the others are problems."""
    indexes = []
    for entry in plan.manifest.shards:
        try:
            index = _read_index(plan.folder, entry)
            if len(index.sums.count) != plan.shape[0]:
                raise ShardError(f"{index_path(plan.folder / entry.name)}: sums of other bands than the manifest's")
            indexes.append(index)
        except ShardError as error:
            found.problems.append(str(error))
    return indexes


def _read_index(folder: Path, entry: ShardEntry) -> ShardIndex:
    path = index_path(folder / entry.name)
    index = read_json(path, ShardIndex)
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry.index_sha256:
        raise ShardError(f"{path}: not the index that the manifest names")
    return index


def _check_dataset(plan: Plan, indexes: list[ShardIndex]) -> Iterator[str]:
    """Manifest, table, indexes and statistics against each other."""
    folder, manifest = plan.folder, plan.manifest
    path, whole = folder / manifest.table, len(indexes) == len(manifest.shards)
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    if hashlib.sha256(stored).hexdigest() != manifest.table_sha256:
        yield f"{path}: not the table that the manifest names; run `python -m shards merge {folder}`"
    elif whole and stored != table.to_bytes(table.join([vars(index.tiles) for index in indexes], range(len(indexes)))):
        yield f"{path}: does not repeat the shards' indexes; run `python -m shards merge {folder}`"
    if (folder / MANIFEST).read_bytes() != to_json(manifest).encode():
        yield f"{folder / MANIFEST}: not the bytes that were written"
    sensor = sensor_of(manifest)
    names = (sensor.name, sensor.identity_by_bands)  # older ones name own band tables by their file alone
    if manifest.content_hash not in [content_hash(manifest.shards, manifest.codec, name) for name in names]:
        yield f"{folder / MANIFEST}: its content hash is not that of its shards"
    sums = BandSums.empty(plan.shape[0])
    for index in indexes:
        sums.add(band_sums(index.sums))
    if whole and Sums(**vars(sums)) != manifest.sums:
        yield f"{folder / MANIFEST}: its sums are not those of its shards"
    sums = band_sums(manifest.sums)
    if (manifest.mean, manifest.std) != (sums.mean().tolist(), sums.std().tolist()):
        yield f"{folder / MANIFEST}: mean and standard deviation do not follow from its sums"
    for name, values in (("mu.npy", manifest.mu), ("sigma.npy", manifest.sigma)):
        try:
            array = read_npy((folder / name).read_bytes())
        except (OSError, ValueError) as error:
            yield f"{folder / name}: can't be read: {error}"
            continue
        if array.dtype != values.dtype or not np.array_equal(array, values):
            yield f"{folder / name}: not the manifest's statistics"


def _check_history(plan: Plan, indexes: list[ShardIndex], found: Findings) -> list[tuple]:
    """What `pack` wrote down: its record, its lists, each listed tile stored or set aside; files that don't belong.

    Returns:
        Jobs for `compare_bundle`.
    """
    folder, manifest, known = plan.folder, plan.manifest, {entry.name for entry in plan.manifest.shards}
    aside = {bad.path: bad.reason for index in indexes for bad in index.rejected}
    bundled: dict[str, set[str]] = {}
    if (folder / RECORD).exists():  # else tars of others, which were indexed
        with found.guard(folder):
            record = read_record(folder)
            if len(record.generations) < manifest.generations:
                raise ShardError(f"{folder / RECORD}: tells of less than the manifest does; restore it")
            if (folder / RECORD).read_bytes() != to_json(record).encode():
                found.problems.append(f"{folder / RECORD}: not the bytes that were written")
            if len(record.generations) > manifest.generations:
                found.notes.append(f"{folder}: the last --append is not finished")
            last = record.generations[manifest.generations - 1]
            unlisted = {shard_name(number) for number in range(last.first_shard + last.shards)} - known
            for name in sorted(unlisted):  # shards without a usable tile
                aside |= {bad.path: bad.reason for bad in read_json(index_path(folder / name), ShardIndex).rejected}
            known |= unlisted
            bundled = _check_lists(plan, record, indexes, aside, found)
            if plan.sources.tiles and not record.options.labels:  # a label may be to blame
                found.problems += check_rejected(plan, plan.sources.tiles, aside)
    for path in sorted(folder.iterdir()):
        if path.name.endswith(TEMPORARY):
            found.notes.append(f"{path}: left by an unfinished run; the next pack or merge removes it")
        elif path.suffix == ".tar" and path.name not in known:
            found.notes.append(f"{path}: a tar that the manifest does not name")
    return bundle_jobs(plan, record, bundled, set(aside), found) if bundled else []


def _check_lists(
    plan: Plan, record: PackRecord, indexes: list[ShardIndex], aside: dict[str, str], found: Findings
) -> dict[str, set[str]]:
    """Whether each listed tile is stored or set aside; returns the keys of the stored tiles of each bundle."""
    stored = {key for index in indexes for key in index.tiles.key}
    bundled: dict[str, set[str]] = {}
    for generation in record.generations[: plan.manifest.generations]:
        for tile in read_list(plan.folder, generation):
            key, path = tile.source.key, tile.source.path
            if key in stored and tile.spooled:
                bundled.setdefault(path, set()).add(key)
            elif key not in stored and path not in aside and len(indexes) == len(plan.manifest.shards):
                found.problems.append(
                    f"{plan.folder / generation.list_name}: tile '{key}' ({path}) is neither stored nor set aside"
                )
    return bundled


# ---- one shard ----


def check_shard(plan: Plan, number: int) -> Findings:
    """All checks of one shard, which can be anything by now."""
    found, entry = Findings(), plan.manifest.shards[number]
    tar = plan.folder / entry.name
    if not tar.exists():
        found.problems.append(f"{tar}: missing; copy or pack it again")
        return found
    with found.guard(tar):
        found.problems += _check_file(tar, entry, whole=plan.sample == 1)
    try:
        index = _read_index(plan.folder, entry)
    except ShardError:
        return found  # named already, where all indexes are read
    described: dict[int, dict[str, Any]] = {}
    with found.guard(tar):
        if is_foreign(plan.manifest.codec):
            found.problems += _check_foreign_members(tar, index.tiles)
        else:
            found.problems += _check_members(plan, tar, index.tiles, described)
    with found.guard(tar), open(tar, "rb") as file:
        _check_tiles(plan, tar, file, index, described, found)
    if plan.sample == 1:
        found.size = tar.stat().st_size
    return found


def _check_file(tar: Path, entry: ShardEntry, whole: bool) -> Iterator[str]:
    size = tar.stat().st_size
    if size != entry.size:
        yield f"{tar}: {size} bytes where {entry.size} were written; copy or pack it again"
    elif whole:
        with open(tar, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                yield f"{tar}: its SHA-256 is not the manifest's: damaged; copy or pack it again"


def _check_members(plan: Plan, tar: Path, columns: TileColumns, described: dict[int, dict[str, Any]]) -> Iterator[str]:
    """A stock tar reader finds the members that the index tells, in order. ``described`` takes the JSONs by row."""
    wanted: list[tuple[str, int, tuple[int, int] | None]] = []
    for row, key in enumerate(columns.key):
        wanted += [(f"{key}.tile", row, (columns.offset[row], columns.length[row])), (f"{key}.json", row, None)]
        if columns.mask_length[row]:
            wanted.append((f"{key}.mask.npy", row, (columns.mask_offset[row], columns.mask_length[row])))
    end, count = 0, 0
    with tarfile.open(tar, "r:") as archive:
        for count, member in enumerate(archive, start=1):
            where = f"{tar}: member '{member.name}' at byte {member.offset_data}"
            name, row, place = wanted[count - 1] if count <= len(wanted) else ("end of the tar", 0, None)
            if member.offset < end or member.name != name:
                yield f"{where}: the index tells '{name}'"
                return  # all that follows is shifted
            end = member.offset_data + member.size
            if place is None:
                yield from _check_description(plan, where, archive.extractfile(member), columns, row, described)
            elif place != (member.offset_data, member.size):
                yield f"{where} of {member.size} bytes: the index tells byte {place[0]} and {place[1]} bytes"
    if count < len(wanted):
        yield f"{tar}: a tar reader finds {count} of {len(wanted)} members, no '{wanted[count][0]}' after byte {end}"


_DESCRIBED = [name for name in TileColumns.model_fields if not name.endswith(("offset", "length", "checksum"))]


def _check_description(
    plan: Plan, where: str, file: IO[bytes] | None, columns: TileColumns, row: int, described: dict[int, dict[str, Any]]
) -> Iterator[str]:
    try:
        told = dict(read_json_value(file.read() if file else b""))
    except (ValueError, TypeError) as error:
        yield f"{where}: not a description: {error}"
        return
    wanted = {name: getattr(columns, name)[row] for name in _DESCRIBED}
    wanted |= {"shape": list(plan.shape), "dtype": "int16", "sensor": plan.manifest.sensor}
    differs = [name for name in wanted if told.get(name, ...) != wanted[name]]
    if differs:
        yield f"{where}: '{differs[0]}' is not what the index says"
    described[row] = told


def _check_foreign_members(tar: Path, columns: TileColumns) -> Iterator[str]:
    """A stock tar reader finds a member wherever the index says that a tile lies."""
    with tarfile.open(tar, "r:") as archive:
        found = {member.offset_data: member.size for member in archive}
    for key, offset, length in zip(columns.key, columns.offset, columns.length, strict=True):
        if found.get(offset) != length:
            yield f"{tar}: tile '{key}' at byte {offset} is no member of {length} bytes"


def _check_tiles(
    plan: Plan, tar: Path, file: IO[bytes], index: ShardIndex, described: dict[int, dict[str, Any]], found: Findings
) -> None:
    """Checksums, decoding and statistics of the chosen tiles, and their source files where they are given."""
    codec, columns, before = build_codec(plan.manifest.codec), index.tiles, len(found.problems)
    sums, values = BandSums.empty(plan.shape[0]), np.empty(plan.shape, dtype=np.int16)
    for row, key in enumerate(columns.key):
        if not plan.chooses(key):
            continue
        source = _source_of(described.get(row, {}))
        found.tiles += 1
        found.size += columns.length[row] + columns.mask_length[row]
        counters().add(1, values.nbytes, columns.length[row])
        where = f"{tar}: tile '{key}' at byte {columns.offset[row]}"
        with found.guard(where):
            codec.decode(_read(file, columns.offset[row], columns.length[row], columns.checksum[row]), values)
            sums.add(BandSums.of(values))
            if plan.sources.tiles and source and "!" not in source:  # archives and products: compare_bundle
                found.problems += compare(where, plan.sources.tiles / source, values, plan.read_source)
                found.compared += 1
        if columns.mask_length[row]:
            where = f"{tar}: label tile '{key}' at byte {columns.mask_offset[row]}"
            with found.guard(where):
                place = columns.mask_offset[row], columns.mask_length[row], columns.mask_checksum[row]
                mask = read_npy(_read(file, *place))
                if mask.shape != plan.shape[1:]:
                    found.problems.append(f"{where}: {mask.shape} where {plan.shape[1:]} was expected")
                if plan.labels and source:
                    found.problems += compare_label(plan, where, mask, described[row])
    if plan.sample == 1 and len(found.problems) == before and Sums(**vars(sums)) != index.sums:
        found.problems.append(f"{index_path(tar)}: its sums are not those of the tiles in {tar}")


def _source_of(described: dict[str, Any]) -> str:
    """The tile's file as its description tells it; "" where it tells none, or one outside the sources."""
    try:
        return inner_path(str(described["source"]))
    except (KeyError, ValueError):
        return ""


def _read(file: IO[bytes], offset: int, length: int, wanted: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise ShardError(f"cut short: {length} bytes were written")
    if checksum(data) != wanted:
        raise ShardError("fails its checksum")
    return data
