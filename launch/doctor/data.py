"""The shards as every rank sees them, and the node-local folder for copies of them."""

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.doctor.cluster import Cluster, values
from launch.doctor.disk import nearest_existing
from launch.doctor.table import Row
from pretrain.config import PretrainConfig
from pretrain.config.data import SourceConfig
from shards.errors import ConfigError
from shards.files.atomic import write_atomic
from shards.order.view import view_rows
from shards.read.reader import ShardReader

TILES = 32
"""Number of tiles that each rank reads; each rank draws its own."""

_AT_ONCE = 8


@dataclass(frozen=True)
class Opened:
    """Shards as seen by one rank; ``chosen``: number of tiles in the run's view; ``read``: number of tiles read."""

    content_hash: str
    tiles: int
    chosen: int
    shards: int
    size: int
    read: int


def check_shards(cluster: Cluster, source: SourceConfig | None = None) -> Row:
    """Open shards on every rank, compare their content hashes, and read random tiles with checksums.

    Args:
        source: one of several sources; None for the run's only one.
    """
    each = source or cluster.config.data.each[0]
    answers = cluster.everywhere(lambda: _open_and_read(cluster.config, each, cluster.rank))
    failure = cluster.failure(answers)
    if failure:
        return Row("red", failure, f"what the line names; `python -m shards verify {each.shards}` reads every byte")
    return judge_shards(values(answers), [cluster.name(rank) for rank in range(cluster.size)], each.shards)


def judge_shards(opened: Sequence[Opened], names: Sequence[str], location: str) -> Row:
    """Return the row for the shards opened by the ranks with these names."""
    first = opened[0]
    for name, dataset in zip(names, opened, strict=True):
        if dataset.content_hash != first.content_hash:
            found = f"{location}: {name} has content {dataset.content_hash[:12]}, {names[0]} {first.content_hash[:12]}"
            return Row("red", found, "one dataset at this path on every host: a stale copy or another mount")
    found = (
        f"{location}: content {first.content_hash[:12]} on every rank, {first.chosen} of {first.tiles} tiles in the "
        f"view, {first.shards} shards of {first.size / 1e9:.2g} GB; {sum(dataset.read for dataset in opened)} tiles "
        "read, checksums match"
    )
    return Row("green", found)


def check_staging(cluster: Cluster) -> Row:
    """Check that the folder for node-local copies is writable on every host and has enough room."""
    data = cluster.config.data
    if data.stage is None:
        return Row("green", "not requested (data.stage): shards are read in place")
    folder = Path(data.stage)
    fix = "a data.stage on each node's own disk, such as $SLURM_TMPDIR"
    is_first = cluster.rank in cluster.first_ranks
    answers = cluster.everywhere(lambda: _stage_room(cluster.config, folder) if is_first else (0, 0))
    failure = cluster.failure(answers)
    if failure:
        return Row("red", failure, fix)
    free, needed = min((values(answers)[rank] for rank in cluster.first_ranks), key=lambda pair: pair[0] - pair[1])
    found = (
        f"{folder}: writable on {len(cluster.first_ranks)} hosts, {free / 1e9:.1f} GB free, "
        f"{needed / 1e9:.1f} GB needed"
    )
    if free >= needed:
        return Row("green", found)
    if data.stage_quota_gb:
        return Row("red", found, f"data.stage_quota_gb={int(free // 10**9)} or less, or {fix}")
    return Row("yellow", f"{found}: the rest is read from {', '.join(each.shards for each in data.each)}", fix)


def _open_and_read(config: PretrainConfig, source: SourceConfig, rank: int) -> Opened:
    reader = ShardReader(source.shards, config.data.read_threads)
    try:
        smallest = min(reader.tile_shape[1:])
        if config.augment.crop_scale is None and config.model.image_size > smallest:
            raise ConfigError(f"model.image_size {config.model.image_size} px can't be cut from tiles of {smallest} px")
        rows = view_rows(source.view or config.data.view, reader.table)
        if not len(rows):
            raise ConfigError("no tile meets the conditions of data.view")
        chosen = np.random.default_rng(rank).choice(rows, min(len(rows), TILES), replace=False)
        for begin in range(0, len(chosen), _AT_ONCE):
            part = chosen[begin : begin + _AT_ONCE]
            reader.read(part, np.empty((len(part), *reader.tile_shape), dtype=np.int16))
        manifest = reader.manifest
        return Opened(manifest.content_hash, len(reader), len(rows), len(manifest.shards), reader.nbytes, len(chosen))
    finally:
        reader.close()


def _stage_room(config: PretrainConfig, folder: Path) -> tuple[int, int]:
    """Write and remove a probe file in a folder, and return (free bytes, required bytes)."""
    existing = nearest_existing(folder)
    probe = existing / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        write_atomic(probe, "staging")
    except OSError as error:
        raise ConfigError(f"key 'data.stage': {existing} can't be written to: {error.strerror}") from None
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(existing).free
    copied = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    total = sum(ShardReader(source.shards).nbytes for source in config.data.each)
    quota = config.data.stage_quota_gb
    return free + copied, min(total, quota * 10**9) if quota else total
