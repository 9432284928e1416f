"""`stats`: per-band statistics of a dataset from exact histograms of all int16 values.

The histograms are integer counts of every digital number: the result does not depend on the order of shards or the
number of workers and parts, and percentiles are exact. Missing pixels are counted separately.
"""

import json
import re
import time
from dataclasses import dataclass
from operator import mul
from pathlib import Path

import numpy as np

from shards.errors import ShardError
from shards.files.atomic import atomic_open, write_atomic
from shards.files.untrusted import read_npz
from shards.format import kernels
from shards.format.manifest import Manifest, band_sums, read_manifest
from shards.format.statistics import BandSums
from shards.read.reader import ShardReader
from shards.sensors.sensor import NODATA
from shards.workers import counters, run_jobs

PERCENTILES = (1, 2, 5, 25, 50, 75, 95, 98, 99)
LEVELS = 1 << 16
_PART = re.compile(r"stats-part-(\d{5})-of-(\d{5})\.npz")


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of a band in digital numbers, NaN without valid pixels; ``dead`` bands have at most one value."""

    wavelength_nm: float
    mean: float
    std: float
    low: float
    high: float
    percentiles: dict[str, float]
    nodata: float
    dead: bool


def stats(folder: Path, part: tuple[int, int] | None, workers: int) -> int:
    """Measure a shard folder, or a part of it; print a table and write ``stats.json``, mu.npy and sigma.npy.

    Args:
        part: (K, N) measures every N-th shard and saves ``stats-part-*.npz``; None joins the parts, or measures all.

    Raises:
        ShardError: if a shard or the manifest is damaged, or parts are missing or belong to other shards.
    """
    begin = time.monotonic()
    manifest = read_manifest(folder)
    if part is not None:
        number, of = part
        histogram = count_values(folder, manifest, list(range(len(manifest.shards)))[number - 1 :: of], workers)
        path = folder / f"stats-part-{number:05d}-of-{of:05d}.npz"
        with atomic_open(path) as file:
            np.savez_compressed(file, histogram=histogram, content=np.array(manifest.content_hash))
        print(f"{path}: part {number} of {of} in {time.monotonic() - begin:.1f} s; join them: shards stats {folder}")
        return 0
    joined = _join_parts(folder, manifest)
    if joined is not None:
        histogram = joined
    else:
        histogram = count_values(folder, manifest, list(range(len(manifest.shards))), workers)
    if exact_sums(histogram) != band_sums(manifest.sums):
        raise ShardError(f"{folder}: the tiles' statistics differ from the manifest's: run `python -m shards verify`")
    bands = describe(histogram, manifest)
    _write(folder, manifest, bands)
    print(_table(bands))
    dead = [str(number) for number, band in enumerate(bands) if band.dead]
    pixels = int(histogram.sum()) // len(bands)
    print(
        f"{folder}: {manifest.tiles} tiles, {pixels} pixels, {len(dead)} dead bands"
        f"{' (' + ', '.join(dead) + ')' if dead else ''} in {time.monotonic() - begin:.1f} s; "
        "written: stats.json, mu.npy, sigma.npy"
    )
    return 0


def count_values(folder: Path, manifest: Manifest, shards: list[int], workers: int) -> np.ndarray:
    """Return the histogram of each band over these shards, int64 (bands, 65536), starting at -32768."""
    total = np.zeros((manifest.tile_shape[0], LEVELS), dtype=np.int64)
    tiles = sum(manifest.shards[number].tiles for number in shards)
    groups = [shards[first::workers] for first in range(min(workers, len(shards)))]  # a histogram takes 100 MB
    for histogram in run_jobs(_count_shards, [(folder, group) for group in groups], workers, tiles, 0, "stats"):
        total += histogram
    return total


def _count_shards(folder: Path, shards: list[int]) -> np.ndarray:
    reader = ShardReader(folder)
    bands = reader.tile_shape[0]
    histogram = np.zeros((bands, LEVELS), dtype=np.int64)
    tile = np.empty((1, *reader.tile_shape), dtype=np.int16)
    for row in np.flatnonzero(np.isin(reader.table["shard"], shards)):
        reader.read([int(row)], tile)
        kernels.count_values(tile[0].reshape(bands, -1), histogram)
        counters().add(1, tile.nbytes, int(reader.table["length"][row]))
    reader.close()
    return histogram


def exact_sums(histogram: np.ndarray) -> BandSums:
    """Compute the sums in the manifest from a histogram, int64 (bands, 65536)."""
    sums = BandSums.empty(0)
    for counts in histogram:
        valid = np.flatnonzero(counts)
        valid = valid[valid != NODATA + LEVELS // 2]
        values, numbers = (valid - LEVELS // 2).tolist(), counts[valid].tolist()  # Python integers don't overflow
        sums.count.append(sum(numbers))
        sums.total.append(sum(map(mul, numbers, values)))
        sums.squares.append(sum(number * value * value for number, value in zip(numbers, values, strict=True)))
        sums.low.append(min(values, default=32767))
        sums.high.append(max(values, default=-32767))
    return sums


def describe(histogram: np.ndarray, manifest: Manifest) -> list[BandStatistics]:
    """Return the statistics of every band from its histogram."""
    values = np.arange(LEVELS) - LEVELS // 2
    bands = []
    for band, counts in enumerate(histogram):
        valid = counts.copy()
        valid[NODATA + LEVELS // 2] = 0
        count, present = int(valid.sum()), np.flatnonzero(valid)
        mean, std = manifest.mean[band], manifest.std[band]  # from exact sums, identical to mu.npy
        empty = count == 0
        ranks = {str(share): _percentile(values, valid, count, share) for share in PERCENTILES}
        bands.append(
            BandStatistics(
                wavelength_nm=manifest.wavelength_nm[band],
                mean=float("nan") if empty else mean,
                std=float("nan") if empty else (0.0 if len(present) == 1 else std),
                low=float("nan") if empty else float(values[present[0]]),
                high=float("nan") if empty else float(values[present[-1]]),
                percentiles=ranks,
                nodata=1 - count / max(int(counts.sum()), 1),
                dead=len(present) < 2,
            )
        )
    return bands


def _percentile(values: np.ndarray, counts: np.ndarray, count: int, share: float) -> float:
    """Return the smallest value that at least ``share`` percent of the pixels do not exceed."""
    if not count:
        return float("nan")
    rank = max(1, -(-count * share // 100))
    return float(values[np.searchsorted(np.cumsum(counts), rank)])


def _join_parts(folder: Path, manifest: Manifest) -> np.ndarray | None:
    """Return the sum of a complete set of parts, or None if there are no parts."""
    parts_found = {
        path: match for path in sorted(folder.glob("stats-part-*.npz")) if (match := _PART.fullmatch(path.name))
    }
    if not parts_found:
        return None
    of = {int(match[2]) for match in parts_found.values()}
    missing = sorted(set(range(1, max(of) + 1)) - {int(match[1]) for match in parts_found.values()})
    if len(of) > 1 or missing:
        what = (
            f"parts of different sets ({sorted(of)})" if len(of) > 1 else f"part {missing[0]} of {max(of)} is missing"
        )
        raise ShardError(f"{folder}: {what}: run it, or remove the stats-part files")
    total = np.zeros((manifest.tile_shape[0], LEVELS), dtype=np.int64)
    for path in parts_found:
        try:
            part = read_npz(path)
            if str(part["content"]) != manifest.content_hash:
                raise ShardError(f"{path}: belongs to other shards; remove it")
            histogram = part["histogram"]
            if histogram.shape != total.shape or histogram.dtype != total.dtype:
                raise ValueError(f"counts {histogram.dtype} {histogram.shape}")
            total += histogram
        except (OSError, ValueError, KeyError) as error:
            raise ShardError(f"{path}: can't be read ({error}); remove it and run this part again") from None
    return total


def _write(folder: Path, manifest: Manifest, bands: list[BandStatistics]) -> None:
    rows = [{name: _json(value) for name, value in vars(band).items()} for band in bands]
    content = {"content_hash": manifest.content_hash, "tiles": manifest.tiles, "bands": rows}
    write_atomic(folder / "stats.json", json.dumps(content, indent=1) + "\n")
    for name, numbers in (("mu.npy", manifest.mu), ("sigma.npy", manifest.sigma)):
        with atomic_open(folder / name) as file:
            np.save(file, numbers, allow_pickle=False)


def _json(value: object) -> object:
    """Replace NaN by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def _table(bands: list[BandStatistics]) -> str:
    """Format a line for every tenth band and for each dead one."""
    lines = ["band     nm     mean      std      min      p2     p50     p98      max  nodata"]
    for number, band in enumerate(bands):
        if number % 10 == 0 or band.dead or number == len(bands) - 1:
            ranks = band.percentiles
            lines.append(
                f"{number:4d} {band.wavelength_nm:6.0f} {band.mean:8.1f} {band.std:8.1f} {band.low:8.0f} "
                f"{ranks['2']:7.0f} {ranks['50']:7.0f} {ranks['98']:7.0f} {band.high:8.0f} {band.nodata:7.2%}"
                f"{'  dead' if band.dead else ''}"
            )
    return "\n".join(lines)
