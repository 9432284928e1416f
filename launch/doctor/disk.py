"""The file system of the run folder: renames visible to all ranks, and room for checkpoints."""

import contextlib
import os
import shutil
import time
import uuid
from functools import partial
from pathlib import Path

from torch import nn

from launch.doctor.cluster import Cluster, values
from launch.doctor.table import Row
from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.inputs import open_reader
from pretrain.registries import OBJECTIVES
from pretrain.resilience.run_folder import held_at_once
from shards.errors import ConfigError
from shards.files.atomic import write_atomic

PROBE_BYTES = 64 << 20
SEEN_S = 10.0
"""Time limit for a rename to become visible on another host; NFS caches attributes for 3 to 60 s by default."""


_FIX = "a run.dir on a file system that all nodes have mounted, and may write to"


def check_file_system(cluster: Cluster) -> Row:
    """Write, fsync, rename and read back files next to the run's folder, from all ranks."""
    parent = nearest_existing(Path(cluster.config.run.dir))
    folder = parent / distributed.broadcast_object(f".doctor-{uuid.uuid4().hex[:8]}")
    try:
        return _exchange_files(cluster, folder)
    finally:
        if cluster.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _exchange_files(cluster: Cluster, folder: Path) -> Row:
    writers = cluster.first_ranks
    failure = cluster.failure(cluster.everywhere(lambda: _make(folder) if cluster.rank == 0 else None))
    if failure:
        return Row("red", failure, _FIX)
    seconds, lateness = [], []
    for mark, size in ((b"first", PROBE_BYTES), (b"second", 0)):  # the second replaces a file that may be cached
        written = cluster.everywhere(partial(_write_probe, folder, cluster.rank, writers, mark, size))
        failure = cluster.failure(written)
        if failure:
            return Row("red", failure, _FIX)
        seconds.append(max(values(written)))
        seen = cluster.everywhere(partial(_await_files, folder, {rank: cluster.name(rank) for rank in writers}, mark))
        failure = cluster.failure(seen)
        if failure:
            return Row("red", failure, f"{_FIX}; on NFS, mounted with actimeo=3")
        lateness.append(max(values(seen)))
    rate = len(writers) * PROBE_BYTES / seconds[0] / 1e6
    found = (
        f"{folder.parent}: {rate:.0f} MB/s with fsync from {len(writers)} host{'s' * (len(writers) > 1)}, "
        f"renames seen by all ranks within {max(lateness):.2f} s"
    )
    return Row("green", found)


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
    except OSError as error:
        raise ConfigError(f"key 'run.dir': {folder.parent} can't be written to: {error.strerror}") from None


def _write_probe(folder: Path, rank: int, writers: list[int], mark: bytes, size: int) -> float:
    """Write, fsync and rename a file of ``mark`` and ``size`` bytes on a writer, and return the seconds taken."""
    if rank not in writers:
        return 0.0
    data = mark + os.urandom(size)  # a compressing file system would be too fast on zeros
    begin = time.perf_counter()
    write_atomic(folder / f"rank-{rank}", data)
    return time.perf_counter() - begin


def _await_files(folder: Path, writers: dict[int, str], mark: bytes) -> float:
    """Return the seconds until the writers' files start with ``mark`` here; raise TimeoutError after SEEN_S."""
    begin = time.perf_counter()
    for rank, name in writers.items():
        path = folder / f"rank-{rank}"
        while not _begins_with(path, mark):
            if time.perf_counter() - begin > SEEN_S:
                raise TimeoutError(f"{path}: a file renamed by {name} did not appear within {SEEN_S:.0f} s")
            time.sleep(0.05)
    return time.perf_counter() - begin


def _begins_with(path: Path, data: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(data)) == data
    except FileNotFoundError:
        return False


def check_room(cluster: Cluster) -> Row:
    """Compare free space with the checkpoints that exist at the same time, including the one being written."""
    config, folder = cluster.config, Path(cluster.config.run.dir)
    answers = cluster.everywhere(lambda: _measure_room(config, folder) if cluster.rank == 0 else (0, 0, 0))
    failure = cluster.failure(answers)
    if failure:
        return Row("yellow", f"not known: {failure}", "first fix the rows 'shards' and 'file system'")
    weights, free, taken = values(answers)[0]
    return judge_room(weights, free, taken, config)


def judge_room(weights: int, free: int, taken: int, config: PretrainConfig) -> Row:
    """Return the row for ``weights`` weights, given ``free`` bytes and ``taken`` bytes used by this run."""
    size = checkpoint_bytes(weights, config)
    count = held_at_once(config.checkpoint, config.train.steps)
    found = (
        f"{free / 1e9:.1f} GB free"
        + (f" and {taken / 1e9:.1f} GB of this run's checkpoints" if taken else "")
        + f" for {count} x {size / 1e9:.2g} GB ({weights / 1e6:.1f} M weights); quotas are not checked"
    )
    if free + taken < count * size:
        return Row("red", found, f"free {(count * size - free - taken) / 1e9:.1f} GB, or lower checkpoint.keep")
    return Row("green", found)


def checkpoint_bytes(weights: int, config: PretrainConfig) -> int:
    """Return the size of a checkpoint in fp32: weights, optimizer moments and momentum network."""
    from pretrain.engine.optimizers import build_optimizer, optimizer_state

    moments = optimizer_state(build_optimizer(nn.Linear(2, 2), config.optim)).moments
    average = int(OBJECTIVES[config.objective.name].keeps_average)
    return 4 * weights * (1 + len(moments) + average)


def count_weights(config: PretrainConfig, bands: int) -> int:
    """Return the number of weights that a run trains, from a model built without memory."""
    from pretrain.objectives import outline_module

    return sum(weight.numel() for weight in outline_module(config, bands).parameters())


def nearest_existing(path: Path) -> Path:
    """Return the folder itself, or its nearest existing parent."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _measure_room(config: PretrainConfig, folder: Path) -> tuple[int, int, int]:
    """Return (weights of the model, free bytes, bytes of this run's checkpoints)."""
    bands = open_reader(config.data).tile_shape[0]
    taken = 0
    for path in (folder / "checkpoints").rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a run that is still saving
            taken += path.stat().st_size if path.is_file() else 0
    return count_weights(config, bands), shutil.disk_usage(nearest_existing(folder)).free, taken
