"""`verify`: read every byte of a shard folder again, and compare tiles with the files that they came from.

It checks hashes, the offsets of tar members, the statistics of decoded tiles, that the table matches the indexes, and
that every listed tile is stored or set aside. Any error caused by a damaged file becomes a line that names the file.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.check.compare import (
    Findings,
    Plan,
    Sources,
    bundle_jobs,
    check_rejected,
    compare_bundle,
    open_labels,
    source_sensor,
)
from shards.check.shard import check_shard, read_index
from shards.console import get_logger
from shards.errors import ConfigError, ShardError, SourceError
from shards.files.atomic import TEMPORARY
from shards.files.untrusted import read_npy
from shards.format import table
from shards.format.manifest import (
    MANIFEST,
    ShardIndex,
    Sums,
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
from shards.pack.writer import index_path
from shards.workers import run_jobs

logger = get_logger(__name__)


def verify(folder: Path, sources: Sources, sample: float, workers: int) -> int:
    """Check a shard folder and print a line for every problem; returns 0, or 1 if there are problems.

    Args:
        sample: fraction of the tiles to read, selected by their keys; below 1 whole-file hashes are skipped.

    Raises:
        ShardError: if there is no manifest, so that nothing can be checked.
        SourceError: if the sources do not exist.
        ConfigError: if the tiles can't be compared with sources, since they were transcoded from lossy shards.
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
        print(f"{folder}: 1 problem: nothing else can be checked without the manifest")
        return 1
    if sources.tiles and manifest.made_from and manifest.made_from.max_error:
        raise ConfigError(
            f"{folder}: made from shards with errors up to {manifest.made_from.max_error}, whose bounds by tile it "
            "does not have: compare those shards with --source, or leave it out"
        )
    labels = open_labels(folder, sources.labels)
    plan, findings = Plan(folder, manifest, source_sensor(folder, manifest), sources, sample, labels), Findings()
    indexes = _read_indexes(plan, findings)
    findings.problems += _check_dataset(plan, indexes)
    bundles = _check_history(plan, indexes, findings)
    jobs = [(plan, number) for number in range(len(manifest.shards))]
    for result in run_jobs(check_shard, jobs, workers, round(manifest.tiles * sample), 0, "verify"):
        findings.add(result)
    for result in run_jobs(compare_bundle, bundles, workers, None, 0, "compare"):
        findings.add(result)
    if sources.tiles and findings.tiles and not findings.compared:
        findings.problems.append(
            f"{sources.tiles}: no tile could be compared with it: these are not the tiles that were packed"
        )
    _report(plan, findings, time.monotonic() - begin)
    return 1 if findings.problems else 0


def _report(plan: Plan, findings: Findings, seconds: float) -> None:
    for line in findings.notes:
        logger.warning(line)
    for line in findings.problems:
        print(f"problem: {line}", file=sys.stderr)
    count, source = len(findings.problems), plan.sources.tiles
    print(
        f"{plan.folder}: {findings.tiles} of {plan.manifest.tiles} tiles in {len(plan.manifest.shards)} shards read"
        + (f", {findings.compared} compared with {source}" if source else "")
        + ("" if plan.sample == 1 else " (a sample: whole-file hashes were not checked)")
        + f", {findings.size / 1e9:.3f} GB in {seconds:.1f} s ({findings.size / seconds / 1e9:.3f} GB/s): "
        + f"{count or 'no'} problem{'' if count == 1 else 's'}"
    )


# ---- the dataset's own files ----


def _read_indexes(plan: Plan, findings: Findings) -> list[ShardIndex]:
    """Read the indexes in the manifest's order; those that are damaged or differ from it become problems."""
    indexes = []
    for entry in plan.manifest.shards:
        try:
            index = read_index(plan.folder, entry)
            if len(index.sums.count) != plan.shape[0]:
                raise ShardError(f"{index_path(plan.folder / entry.name)}: sums of different bands than the manifest's")
            indexes.append(index)
        except ShardError as error:
            findings.problems.append(str(error))
    return indexes


def _check_dataset(plan: Plan, indexes: list[ShardIndex]) -> Iterator[str]:
    """Check manifest, table, indexes and statistics against each other."""
    folder, manifest = plan.folder, plan.manifest
    path, is_complete = folder / manifest.table, len(indexes) == len(manifest.shards)
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    if hashlib.sha256(stored).hexdigest() != manifest.table_sha256:
        yield f"{path}: not the table that the manifest names; run `python -m shards merge {folder}`"
    elif is_complete and stored != table.to_bytes(
        table.join([vars(index.tiles) for index in indexes], range(len(indexes)))
    ):
        yield f"{path}: does not repeat the shards' indexes; run `python -m shards merge {folder}`"
    if (folder / MANIFEST).read_bytes() != to_json(manifest).encode():
        yield f"{folder / MANIFEST}: not the bytes that were written"
    sensor = sensor_of(manifest)
    names = (sensor.name, sensor.identity_by_bands)  # older manifests identify custom band tables by file name only
    if manifest.content_hash not in [content_hash(manifest.shards, manifest.codec, name) for name in names]:
        yield f"{folder / MANIFEST}: its content hash differs from that of its shards"
    sums = BandSums.empty(plan.shape[0])
    for index in indexes:
        sums.add(band_sums(index.sums))
    if is_complete and Sums(**vars(sums)) != manifest.sums:
        yield f"{folder / MANIFEST}: its sums differ from those of its shards"
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


def _check_history(plan: Plan, indexes: list[ShardIndex], findings: Findings) -> list[tuple]:
    """Check the record and lists of `pack`, that listed tiles are stored or set aside, and report unknown files.

    Returns:
        Jobs for `compare_bundle`.
    """
    folder, manifest, known = plan.folder, plan.manifest, {entry.name for entry in plan.manifest.shards}
    aside = {bad.path: bad.reason for index in indexes for bad in index.rejected}
    bundled: dict[str, set[str]] = {}
    if (folder / RECORD).exists():  # otherwise the folder holds indexed foreign tars
        with findings.guard(folder):
            record = read_record(folder)
            if len(record.generations) < manifest.generations:
                raise ShardError(f"{folder / RECORD}: describes less than the manifest; restore it")
            if (folder / RECORD).read_bytes() != to_json(record).encode():
                findings.problems.append(f"{folder / RECORD}: not the bytes that were written")
            if len(record.generations) > manifest.generations:
                findings.notes.append(f"{folder}: the last --append is not finished")
            last = record.generations[manifest.generations - 1]
            unlisted = {shard_name(number) for number in range(last.first_shard + last.shards)} - known
            for name in sorted(unlisted):  # shards without a usable tile
                aside |= {bad.path: bad.reason for bad in read_json(index_path(folder / name), ShardIndex).rejected}
            known |= unlisted
            bundled = _check_lists(plan, record, indexes, aside, findings)
            if plan.sources.tiles and not record.options.labels:  # with labels, the label can be the cause
                findings.problems += check_rejected(plan, plan.sources.tiles, aside)
    for path in sorted(folder.iterdir()):
        if path.name.endswith(TEMPORARY):
            findings.notes.append(f"{path}: left by an unfinished run; the next pack or merge removes it")
        elif path.suffix == ".tar" and path.name not in known:
            findings.notes.append(f"{path}: a tar that the manifest does not name")
    return bundle_jobs(plan, record, bundled, set(aside), findings) if bundled else []


def _check_lists(
    plan: Plan, record: PackRecord, indexes: list[ShardIndex], aside: dict[str, str], findings: Findings
) -> dict[str, set[str]]:
    """Check that each listed tile is stored or set aside; returns the keys of each bundle's stored tiles."""
    stored = {key for index in indexes for key in index.tiles.key}
    bundled: dict[str, set[str]] = {}
    for generation in record.generations[: plan.manifest.generations]:
        for tile in read_list(plan.folder, generation):
            key, path = tile.source.key, tile.source.path
            if key in stored and tile.intermediate:
                bundled.setdefault(path, set()).add(key)
            elif key not in stored and path not in aside and len(indexes) == len(plan.manifest.shards):
                findings.problems.append(
                    f"{plan.folder / generation.list_name}: tile '{key}' ({path}) is neither stored nor set aside"
                )
    return bundled


# ---- one shard ----
