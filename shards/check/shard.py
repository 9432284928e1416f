"""Checks of one shard: its hash, its tar members, and every selected tile with its label."""

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from shards.check.compare import Findings, Plan, compare, compare_label
from shards.errors import ShardError
from shards.files.names import inner_path
from shards.files.untrusted import read_json_value, read_npy
from shards.format.codec_registry import build_codec, is_foreign
from shards.format.error_bounds import error_bounds
from shards.format.manifest import ShardEntry, ShardIndex, Sums, TileColumns, read_json
from shards.format.statistics import BandSums
from shards.pack.writer import checksum, index_path
from shards.workers import counters


def check_shard(plan: Plan, number: int) -> Findings:
    """Run all checks of one shard, which can be damaged in any way."""
    findings, entry = Findings(), plan.manifest.shards[number]
    tar = plan.folder / entry.name
    if not tar.exists():
        findings.problems.append(f"{tar}: missing; copy or pack it again")
        return findings
    with findings.guard(tar):
        findings.problems += _check_file(tar, entry, hash_file=plan.sample == 1)
    try:
        index = read_index(plan.folder, entry)
    except ShardError:
        return findings  # already reported when all indexes were read
    described: dict[int, dict[str, Any]] = {}
    with findings.guard(tar):
        if is_foreign(plan.manifest.codec):
            findings.problems += _check_foreign_members(tar, index.tiles)
        else:
            findings.problems += _check_members(plan, tar, index.tiles, described)
    with findings.guard(tar), open(tar, "rb") as file:
        _check_tiles(plan, tar, file, index, described, findings)
    if plan.sample == 1:
        findings.size = tar.stat().st_size
    return findings


def read_index(folder: Path, entry: ShardEntry) -> ShardIndex:
    """Read the index of a shard; raises ShardError if its hash is not the one in the manifest."""
    path = index_path(folder / entry.name)
    index = read_json(path, ShardIndex)
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry.index_sha256:
        raise ShardError(f"{path}: not the index that the manifest names")
    return index


def _check_file(tar: Path, entry: ShardEntry, hash_file: bool) -> Iterator[str]:
    size = tar.stat().st_size
    if size != entry.size:
        yield f"{tar}: {size} bytes, but {entry.size} were written; copy or pack it again"
    elif hash_file:
        with open(tar, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                yield f"{tar}: its SHA-256 differs from the manifest's: damaged; copy or pack it again"


def _check_members(plan: Plan, tar: Path, columns: TileColumns, described: dict[int, dict[str, Any]]) -> Iterator[str]:
    """Check that a standard tar reader finds the indexed members in order; stores JSON by row in ``described``."""
    expected: list[tuple[str, int, tuple[int, int] | None]] = []
    for row, key in enumerate(columns.key):
        expected += [(f"{key}.tile", row, (columns.offset[row], columns.length[row])), (f"{key}.json", row, None)]
        if columns.mask_length[row]:
            expected.append((f"{key}.mask.npy", row, (columns.mask_offset[row], columns.mask_length[row])))
    end, count = 0, 0
    with tarfile.open(tar, "r:") as archive:
        for count, member in enumerate(archive, start=1):
            where = f"{tar}: member '{member.name}' at byte {member.offset_data}"
            name, row, span = expected[count - 1] if count <= len(expected) else ("end of the tar", 0, None)
            if member.offset < end or member.name != name:
                yield f"{where}: the index says '{name}'"
                return  # all following members are shifted
            end = member.offset_data + member.size
            if span is None:
                yield from _check_description(plan, where, archive.extractfile(member), columns, row, described)
            elif span != (member.offset_data, member.size):
                yield f"{where} of {member.size} bytes: the index says byte {span[0]} and {span[1]} bytes"
    if count < len(expected):
        yield f"{tar}: a tar reader finds {count} of {len(expected)} members, not '{expected[count][0]}' at byte {end}"


_DESCRIBED = [name for name in TileColumns.model_fields if not name.endswith(("offset", "length", "checksum"))]


def _check_description(
    plan: Plan, where: str, file: IO[bytes] | None, columns: TileColumns, row: int, described: dict[int, dict[str, Any]]
) -> Iterator[str]:
    try:
        description = dict(read_json_value(file.read() if file else b""))
    except (ValueError, TypeError) as error:
        yield f"{where}: not a description: {error}"
        return
    expected = {name: getattr(columns, name)[row] for name in _DESCRIBED}
    expected |= {"shape": list(plan.shape), "dtype": "int16", "sensor": plan.manifest.sensor}
    differs = [name for name in expected if description.get(name, ...) != expected[name]]
    if differs:
        yield f"{where}: '{differs[0]}' is not what the index says"
    described[row] = description


def _check_foreign_members(tar: Path, columns: TileColumns) -> Iterator[str]:
    """Check that a standard tar reader finds a member at each indexed tile offset."""
    with tarfile.open(tar, "r:") as archive:
        sizes = {member.offset_data: member.size for member in archive}
    for key, offset, length in zip(columns.key, columns.offset, columns.length, strict=True):
        if sizes.get(offset) != length:
            yield f"{tar}: tile '{key}' at byte {offset} is not a member of {length} bytes"


def _check_tiles(
    plan: Plan, tar: Path, file: IO[bytes], index: ShardIndex, described: dict[int, dict[str, Any]], findings: Findings
) -> None:
    """Check checksums, decoding and statistics of the selected tiles, and compare them with their sources if given."""
    codec, columns, before = build_codec(plan.manifest.codec), index.tiles, len(findings.problems)
    sums, values = BandSums.empty(plan.shape[0]), np.empty(plan.shape, dtype=np.int16)
    for row, key in enumerate(columns.key):
        if not plan.chooses(key):
            continue
        source = _source_of(described.get(row, {}))
        findings.tiles += 1
        findings.size += columns.length[row] + columns.mask_length[row]
        counters().add(1, values.nbytes, columns.length[row])
        where = f"{tar}: tile '{key}' at byte {columns.offset[row]}"
        with findings.guard(where):
            data = _read(file, columns.offset[row], columns.length[row], columns.checksum[row])
            codec.decode(data, values)
            sums.add(BandSums.of(values))
            if plan.sources.tiles and source and "!" not in source:  # compare_bundle handles archives and products
                path, bounds = plan.sources.tiles / source, error_bounds(codec, data)
                findings.problems += compare(where, path, values, bounds, plan.read_source)
                findings.compared += 1
        if columns.mask_length[row]:
            where = f"{tar}: label tile '{key}' at byte {columns.mask_offset[row]}"
            with findings.guard(where):
                span = columns.mask_offset[row], columns.mask_length[row], columns.mask_checksum[row]
                mask = read_npy(_read(file, *span))
                if mask.shape != plan.shape[1:]:
                    findings.problems.append(f"{where}: {mask.shape}, expected {plan.shape[1:]}")
                if plan.labels and source:
                    findings.problems += compare_label(plan, where, mask, described[row])
    if plan.sample == 1 and len(findings.problems) == before and Sums(**vars(sums)) != index.sums:
        findings.problems.append(f"{index_path(tar)}: its sums differ from those of the tiles in {tar}")


def _source_of(described: dict[str, Any]) -> str:
    """Return the source path in a tile's description; "" if there is none or it leads outside the sources."""
    try:
        return inner_path(str(described["source"]))
    except (KeyError, ValueError):
        return ""


def _read(file: IO[bytes], offset: int, length: int, expected: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise ShardError(f"cut short: {length} bytes were written")
    if checksum(data) != expected:
        raise ShardError("fails its checksum")
    return data
