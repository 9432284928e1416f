"""`pack`: a directory of tiles becomes a folder of shards; parallel, restartable, the same bytes every time.

The cut is known before a byte is encoded: locations are permuted by a seed, and a shard closes at the
first whole location that reaches ``tiles_per_shard``. A shard with an index is finished; everything
else is written anew after a kill. The manifest is written last: a folder without one is unfinished.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from tqdm import tqdm

from shards.atomic import TEMPORARY, atomic_open, write_atomic
from shards.codec import FAST
from shards.config import ConfigModel
from shards.errors import PackStopped, ShardError, SourceError, TooManyBadTiles
from shards.geotiff import tile_size
from shards.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    Rejected,
    ShardEntry,
    ShardIndex,
    Sums,
    band_sums,
    content_hash,
    read_json,
    read_manifest,
    to_json,
)
from shards.sensors import NODATA, Sensor, get_sensor
from shards.sources import TileSource, find_tiles
from shards.statistics import BandSums
from shards.writer import index_path, write_shard

PLAN = "pack.json"


class PackConfig(ConfigModel):
    """What fixes the bytes of the result. ``size`` in pixels; None takes the commonest among the tiles."""

    sensor: str = "enmap"
    size: Annotated[int, Field(gt=0)] | None = None
    tiles_per_shard: Annotated[int, Field(gt=0)] = 320  # about 1 GB of 202x128x128 tiles
    seed: int = 0


@dataclass(frozen=True)
class PackResult:
    """``written`` counts the shards of this run; the others were there already."""

    manifest: Manifest
    rejected: list[Rejected]
    written: int


def pack(source: Path, dest: Path, config: PackConfig, workers: int = 1, max_bad: float = 0.01) -> PackResult:
    """Write all tiles of ``source`` into shards in ``dest``, or finish what an earlier run began.

    Args:
        workers: processes.
        max_bad: largest share of unusable tiles at which the result still counts as a dataset.

    Raises:
        SourceError: no tiles.
        ShardError: ``dest`` holds other work.
        TooManyBadTiles: finished shards are kept, but no manifest is written.
    """
    sensor = get_sensor(config.sensor)
    tiles = find_tiles(source, sensor.name)
    size = config.size or _common_size(source, tiles)
    _begin(dest, _plan(source, tiles, config, size))
    cut = cut_shards(tiles, config.tiles_per_shard, config.seed)
    written = _write_missing(source, dest, cut, sensor, size, workers)
    rejected = [bad for index in _indexes(dest) for bad in index.rejected]
    share = len(rejected) / len(tiles)
    if share > max_bad:
        examples = "; ".join(f"{source / bad.path}: {bad.reason}" for bad in rejected[:3])
        raise TooManyBadTiles(
            f"{len(rejected)} of {len(tiles)} tiles ({share:.1%}) are unusable, --max-bad allows {max_bad:.1%}: "
            f"{examples}{'; ...' if len(rejected) > 3 else ''}"
        )
    if not (dest / MANIFEST).exists():
        _write_manifest(dest, sensor, size)
    return PackResult(read_manifest(dest), rejected, written)


def cut_shards(tiles: list[TileSource], tiles_per_shard: int, seed: int) -> list[list[TileSource]]:
    """Permute the locations by a seed and cut them into shards, timestamps of a location together."""
    groups = [list(group) for _, group in groupby(tiles, key=lambda tile: tile.location)]
    groups.sort(key=lambda group: hashlib.sha256(f"{seed}/{group[0].location}".encode()).digest())
    shards: list[list[TileSource]] = [[]]
    for group in groups:
        if len(shards[-1]) >= tiles_per_shard:
            shards.append([])
        shards[-1].extend(group)
    return shards


def _plan(source: Path, tiles: list[TileSource], config: PackConfig, size: int) -> dict:
    """What a restart must find unchanged; sizes and times stand for the content of the files."""
    listing = hashlib.sha256()
    for tile in tiles:
        status = (source / tile.path).stat()
        listing.update(f"{tile.key} {tile.path} {status.st_size} {status.st_mtime_ns}\n".encode())
    options = config.model_dump() | {"size": size}
    return {"format": FORMAT, "options": options, "tiles": len(tiles), "listing": listing.hexdigest()}


def _begin(dest: Path, plan: dict) -> None:
    """Record the work in an empty ``dest``, or make sure that it's the work begun there."""
    path = dest / PLAN
    if not path.exists():
        if dest.exists() and any(not name.name.endswith(TEMPORARY) for name in dest.iterdir()):
            raise ShardError(f"{dest}: not empty and not begun by pack; choose another folder")
        dest.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(plan, indent=1) + "\n")
        return
    try:
        begun = dict(json.loads(path.read_bytes()))
    except (OSError, TypeError, ValueError):
        raise ShardError(f"{path}: can't be read; remove {dest} and pack again") from None
    if begun != plan:
        what = "options" if begun.get("options") != plan["options"] else "tiles"
        raise ShardError(f"{dest}: was packed from other {what}; choose another folder or remove this one")


def _common_size(source: Path, tiles: list[TileSource]) -> int:
    """The commonest tile size among 32 tiles spread over the archive: one odd tile must not decide."""
    probes = tiles[:: max(1, len(tiles) // 32)]
    sizes = Counter(size for tile in probes if (size := tile_size(source / tile.path)))
    if not sizes:
        raise SourceError(f"{source}: none of {len(probes)} tiles is a readable square GeoTIFF, e.g. {probes[0].path}")
    return sizes.most_common(1)[0][0]


def _write_missing(
    source: Path, dest: Path, cut: list[list[TileSource]], sensor: Sensor, size: int, workers: int
) -> int:
    for leftover in dest.glob(f"*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)
    missing = {dest / f"shard-{i:06d}.tar": tiles for i, tiles in enumerate(cut)}
    missing = {tar: tiles for tar, tiles in missing.items() if not _is_whole(tar)}
    if not missing:
        return 0
    (dest / MANIFEST).unlink(missing_ok=True)  # a folder with a manifest is whole
    total = sum(len(tiles) for tiles in cut)
    done = total - sum(len(tiles) for tiles in missing.values())
    jobs = [(tar, source, tiles, sensor, size, FAST) for tar, tiles in missing.items()]
    with tqdm(total=total, initial=done, unit="tile", desc="pack", mininterval=1.0) as bar:
        for written in _run(jobs, workers):
            bar.update(written)
    return len(missing)


def _run(jobs: list[tuple], workers: int) -> Iterator[int]:
    """Write shards, one a job, and yield each one's number of source tiles as it is done."""
    if workers == 1:  # no processes: also works in a notebook
        for job in jobs:
            index = write_shard(*job)
            yield len(index.key) + len(index.rejected)
        return
    # "spawn": forking a process that holds GDAL or numcodecs threads is not safe
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(workers, len(jobs))), context, _end_with_parent) as pool:
        running = [pool.submit(write_shard, *job) for job in jobs]
        try:
            for done in as_completed(running):
                index = done.result()
                yield len(index.key) + len(index.rejected)
        except BrokenProcessPool:
            raise PackStopped(
                "a worker process died (killed, perhaps out of memory): finished shards are kept, "
                "the same command continues; use fewer --workers if it dies again"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """In a worker: end when pack is killed, instead of waiting for ever on a queue that nobody fills."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_whole(tar: Path) -> bool:
    """A shard is finished when its index is there and the tar has the length the index names."""
    try:
        return read_json(index_path(tar), ShardIndex).size == tar.stat().st_size
    except (ShardError, OSError):
        return False


def _indexes(dest: Path) -> Iterator[ShardIndex]:
    for path in sorted(dest.glob("shard-*.index.json")):
        yield read_json(path, ShardIndex)


def _write_manifest(dest: Path, sensor: Sensor, size: int) -> None:
    entries: list[ShardEntry] = []
    sums = BandSums.empty(sensor.num_bands)
    rejected = 0
    locations: set[str] = set()
    for index in _indexes(dest):
        sums.add(band_sums(index.sums))
        rejected += len(index.rejected)
        locations.update(index.location)
        if index.key:  # a shard all of whose tiles were unusable is left out
            digest = hashlib.sha256(index_path(dest / index.shard).read_bytes()).hexdigest()
            entries.append(
                ShardEntry(
                    name=index.shard, tiles=len(index.key), size=index.size, sha256=index.sha256, index_sha256=digest
                )
            )
    manifest = Manifest(
        format=FORMAT,
        content_hash=content_hash(entries, FAST.get_config(), sensor.name),
        sensor=sensor.name,
        wavelength_nm=list(sensor.wavelength_nm),
        fwhm_nm=list(sensor.fwhm_nm),
        scale=sensor.scale,
        nodata=NODATA,
        tile_shape=[sensor.num_bands, size, size],
        dtype="int16",
        codec=FAST.get_config(),
        tiles=sum(entry.tiles for entry in entries),
        locations=len(locations),
        rejected=rejected,
        mean=sums.mean().tolist(),
        std=sums.std().tolist(),
        sums=Sums(**vars(sums)),
        shards=entries,
    )
    for name, values in (("mu.npy", manifest.mu), ("sigma.npy", manifest.sigma)):
        with atomic_open(dest / name) as file:
            np.save(file, values, allow_pickle=False)
    write_atomic(dest / MANIFEST, to_json(manifest.sealed()))
