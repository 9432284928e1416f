"""Compare readers that stream the same tiles into batches: ours, the published one, and other libraries.

Every reader yields int16 batches of 16 in a shuffled order on one core, with torch on one thread, unless its name says
otherwise; the page cache is warm and epochs are interleaved. Other libraries run in their default configuration: their
own collate function into new tensors, in this process. Ours and the mmap limit fill a preallocated batch, as designed.
Libraries that are not installed (extra "bench") are listed and skipped.
"""

import argparse
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from torch.utils.data import DataLoader, Dataset

from shards.cli import Parser, positive, run_command
from shards.format.codec_registry import PRESETS
from shards.format.planes import COLUMNS
from shards.pack.build import pack
from shards.pack.scan import PackConfig
from shards.pack.writer import checksum
from shards.read.reader import ShardReader
from tools.bench_codec import load_tiles

BATCH = 16
Epoch = Callable[[], Iterator[int]]


@dataclass(frozen=True)
class Row:
    """One reader: tiles per second and per CPU second (median, quartiles); file size relative to int16."""

    name: str
    tiles_per_s: float
    low: float
    high: float
    per_cpu_s: float
    size: float


class _Files(Dataset):
    """One file per tile, in a shuffled order, as in the published loader."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], np.ndarray]) -> None:
        self._paths, self._read = paths, read

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(self._read(self._paths[number]))


def _read_rasterio(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def _loader(dataset: Any, workers: int = 0) -> Epoch:
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (len(batch) for batch in loader)


def _lengths(batches: Any, part: int | str) -> Iterator[int]:
    return (len(batch[part]) for batch in batches)


def rasterio_ways(folder: Path, tiles: Sequence[np.ndarray]) -> Iterator[tuple[str, Epoch, int]]:
    """Yield readers of one-tile GeoTIFFs, pixel-interleaved as published, plain and deflated; also through tifffile."""
    for name, options in (("uncompressed", {}), ("deflate", {"compress": "deflate", "predictor": 2})):
        paths = [folder / name / f"{number}.tif" for number in range(len(tiles))]
        paths[0].parent.mkdir(parents=True)
        for path, tile in zip(paths, tiles, strict=True):
            shape = {"count": len(tile), "height": tile.shape[1], "width": tile.shape[2], "dtype": "int16"}
            with rasterio.open(path, "w", driver="GTiff", interleave="pixel", **shape, **options) as file:
                file.write(tile)
        size = sum(path.stat().st_size for path in paths)
        yield f"rasterio GeoTIFF {name}", _loader(_Files(paths, _read_rasterio)), size
        if name == "uncompressed":
            yield f"rasterio GeoTIFF {name}, 2 workers", _loader(_Files(paths, _read_rasterio), 2), size
            yield from _tifffile_way(paths, size)


def _tifffile_way(paths: Sequence[Path], size: int) -> Iterator[tuple[str, Epoch, int]]:
    try:
        import tifffile
    except ImportError:
        return _report_missing("tifffile")
    yield "tifffile GeoTIFF uncompressed", _loader(_Files(paths, tifffile.imread)), size


def webdataset_ways(folder: Path, tiles: Sequence[np.ndarray]) -> Iterator[tuple[str, Epoch, int]]:
    """Yield WebDataset readers: .npy members, and our codec in its decoder hook."""
    import webdataset as wds

    for name, encode in (("npy", _npy), ("compact", PRESETS["compact"].encode)):
        path = folder / f"wds-{name}.tar"
        with wds.TarWriter(str(path)) as writer:
            for number, tile in enumerate(tiles):
                writer.write({"__key__": f"{number:06d}", "npy" if name == "npy" else "tile": encode(tile)})
        extension = "npy" if name == "npy" else "tile"
        stages = wds.WebDataset(str(path), shardshuffle=False, empty_check=False).shuffle(64)
        stages = stages.decode() if name == "npy" else stages.decode(_decode_member)
        stages = stages.to_tuple(extension).batched(BATCH)
        yield f"WebDataset {name}", partial(_lengths, stages, 0), path.stat().st_size


def _decode_member(key: str, data: bytes) -> np.ndarray | None:
    return PRESETS["compact"].decode(data) if key.endswith("tile") else None


def _npy(tile: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tile)
    return buffer.getvalue()


def litdata_ways(folder: Path, tiles: Sequence[np.ndarray]) -> Iterator[tuple[str, Epoch, int]]:
    """Yield LitData readers: arrays, and our codec."""
    try:
        from litdata import StreamingDataLoader, StreamingDataset
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        return _report_missing("litdata")
    for name in ("raw", "compact"):
        dest = folder / f"lit-{name}"
        writer = BinaryWriter(str(dest), chunk_bytes="64MB")
        for number, tile in enumerate(tiles):
            writer[number] = {"tile": tile if name == "raw" else PRESETS["compact"].encode(tile)}
        writer.done()
        writer.merge()
        dataset = StreamingDataset(str(dest), shuffle=True)
        collate = None if name == "raw" else _collate_compact
        loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=collate)
        yield f"LitData {name}", partial(_lengths, loader, "tile"), _size(dest)


def _collate_compact(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    tiles = [torch.from_numpy(PRESETS["compact"].decode(sample["tile"])) for sample in samples]
    return {"tile": torch.stack(tiles)}


def mosaic_ways(folder: Path, tiles: Sequence[np.ndarray]) -> Iterator[tuple[str, Epoch, int]]:
    """Yield MosaicML Streaming readers: arrays, and our codec."""
    # its image datasets require a matching torchvision; they are not used here
    sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))
    try:
        from streaming import MDSWriter, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory
    except ImportError:
        return _report_missing("mosaicml-streaming")
    clean_stale_shared_memory()
    for name in ("raw", "compact"):
        dest = folder / f"mds-{name}"
        kind = "ndarray:int16:" + ",".join(map(str, tiles[0].shape)) if name == "raw" else "bytes"
        with MDSWriter(out=str(dest), columns={"tile": kind}, size_limit="64mb") as writer:
            for tile in tiles:
                writer.write({"tile": tile if name == "raw" else PRESETS["compact"].encode(tile)})
        dataset = StreamingDataset(local=str(dest), shuffle=True, batch_size=BATCH, num_canonical_nodes=1)
        collate = None if name == "raw" else _collate_compact
        loader = DataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=collate)
        yield f"MosaicML {name}", partial(_lengths, loader, "tile"), _size(dest)


def mmap_ways(folder: Path, tiles: Sequence[np.ndarray]) -> Iterator[tuple[str, Epoch, int]]:
    """Yield the upper limit: one memory-mapped file, copied tile by tile into a batch; also with our checksums."""
    path = folder / "all.npy"
    np.save(path, np.stack(tiles))
    mapped, batch = np.load(path, mmap_mode="r"), np.empty((BATCH, *tiles[0].shape), np.int16)

    def epoch(check: bool) -> Iterator[int]:
        for rows in _batches(len(tiles)):
            for target, row in zip(batch, rows, strict=False):
                np.copyto(target, mapped[row])
                if check:
                    checksum(target)
            yield len(rows)

    yield "mmap copy (the limit)", lambda: epoch(False), path.stat().st_size
    yield "mmap copy + XXH3", lambda: epoch(True), path.stat().st_size


def our_ways(folder: Path, tiles: Sequence[np.ndarray]) -> Iterator[tuple[str, Epoch, int]]:
    """Yield ShardReader on shards of the GeoTIFFs that `rasterio_ways` wrote."""
    for codec in ("raw", "fast", "compact", "smallest"):
        dest = folder / f"shards-{codec}"
        pack(folder / "uncompressed", dest, PackConfig(codec=codec, tiles_per_shard=32))
        size = sum(path.stat().st_size for path in dest.glob("*.tar"))
        for threads in (1, 2):
            yield f"ours {codec}, {threads} thread{'s' * (threads - 1)}", _our_epoch(dest, threads, True), size
        if codec == "raw":
            yield "ours raw, 1 thread, unverified", _our_epoch(dest, 1, False), size
        elif codec != "smallest":  # which a device doesn't restore
            yield f"ours {codec}, 1 thread, planes", _our_epoch(dest, 1, True, "device"), size


def _our_epoch(dest: Path, threads: int, verify: bool, decode: Literal["host", "device"] = "host") -> Epoch:
    """Read tiles, or with ``decode="device"`` the planes from which a device restores them."""
    reader = ShardReader(dest, threads, verify=verify)
    batch = np.empty((BATCH, *reader.tile_shape), np.int16)
    bands = np.zeros((BATCH, reader.tile_shape[0], COLUMNS), np.int32)

    def epoch() -> Iterator[int]:
        for rows in _batches(len(reader)):
            if decode == "host":
                reader.read(rows, batch[: len(rows)])
            else:
                reader.read_planes(rows, batch[: len(rows)], bands[: len(rows)])
            yield len(rows)

    return epoch


_shuffles = np.random.default_rng(0)


def _batches(count: int) -> Iterator[np.ndarray]:
    order = _shuffles.permutation(count)
    return (order[begin : begin + BATCH] for begin in range(0, count, BATCH))


def _report_missing(package: str) -> None:
    print(f"not installed, skipped: {package}", file=sys.stderr)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(tiles: Sequence[np.ndarray], rounds: int, folder: Path) -> list[Row]:
    """Measure all readers on the same tiles; the first epoch of each warms caches and is not counted."""
    raw = sum(tile.nbytes for tile in tiles)
    sources = (rasterio_ways, webdataset_ways, litdata_ways, mosaic_ways, mmap_ways, our_ways)
    ways = [way for source in sources for way in source(folder, tiles)]
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in ways}
    for number in range(rounds + 1):
        for name, epoch, _ in ways:
            rate = _rate(epoch, len(tiles))
            if number:
                rates[name].append(rate)
    rows = []
    for name, _, size in ways:
        low, median, high = np.percentile([wall for wall, _ in rates[name]], [25, 50, 75])
        rows.append(Row(name, median, low, high, float(np.median([cpu for _, cpu in rates[name]])), size / raw))
    return rows


def _rate(epoch: Epoch, expected: int) -> tuple[float, float]:
    """Return tiles per second of wall time and of CPU time, including workers."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    count = sum(epoch())
    if count != expected:
        raise AssertionError(f"{count} tiles, expected {expected}")
    return count / (time.perf_counter() - wall), count / max(_cpu_seconds() - cpu, 1e-9)


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and its live children (the workers of a DataLoader)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    total, ticks = usage.ru_utime + usage.ru_stime, os.sysconf("SC_CLK_TCK")
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def targets(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Return (description, measured ratio, target ratio) of each target."""
    speed = {row.name: row.tiles_per_s for row in rows}
    cpu = {row.name: row.per_cpu_s for row in rows}
    size = {row.name: row.size for row in rows}
    published, deflate = "rasterio GeoTIFF uncompressed", "rasterio GeoTIFF deflate"
    peers = [name for name in speed if name.startswith(("WebDataset", "LitData", "MosaicML", "tifffile"))]
    carriers = [name for name in peers if name.endswith("compact")]
    raw, fast, compact = (f"ours {codec}, 1 thread" for codec in ("raw", "fast", "compact"))
    return [
        ("raw / published way", speed[raw] / speed[published], 10),
        ("raw unverified / mmap", speed[f"{raw}, unverified"] / speed["mmap copy (the limit)"], 0.6),
        ("raw / mmap with checksum", speed[raw] / speed["mmap copy + XXH3"], 0.6),
        ("fast / published way", speed[fast] / speed[published], 3.5),
        ("fast / best peer", speed[fast] / max(speed[name] for name in peers), 2.5),
        ("compact / published way", speed[compact] / speed[published], 1.3),
        ("compact / rasterio deflate", speed[compact] / speed[deflate], 4),
        ("compact / best peer with compact", speed[compact] / max(speed[name] for name in carriers), 1.5),
        ("compact / rasterio deflate, per CPU second", cpu[compact] / cpu[deflate], 10),
        ("compact's size / deflate's (less is better)", size[compact] / size[deflate], 0.5),
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.bench_stream", description=__doc__)
    parser.add_argument("tiles", type=Path, nargs="?", help="directory of GeoTIFF tiles (default: a synthetic sample)")
    parser.add_argument(
        "--tiles", type=positive, default=64, dest="count", help="how many to stream (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.set_defaults(run=_measure_and_print)
    return parser


def _measure_and_print(arguments: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")  # other libraries emit many warnings
    torch.set_num_threads(1)  # collating must not use more than one core
    folder = Path(tempfile.mkdtemp(prefix="bench-stream-"))
    try:
        loaded = load_tiles(arguments.tiles)
        tiles = [np.roll(loaded[number % len(loaded)], number, axis=2) for number in range(arguments.count)]
        rows = measure(tiles, arguments.rounds, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    mb = tiles[0].nbytes / 1e6
    print(f"{len(tiles)} tiles of {tiles[0].shape} int16, batches of {BATCH}, {arguments.rounds} rounds")
    print(f"{'way':<40} {'tiles/s':>8} {'[quartiles]':<17} {'MB/s':>6} {'tiles/CPU s':>11} {'size':>6}")
    for row in rows:
        spread = f"[{row.low:.0f}, {row.high:.0f}]"
        print(
            f"{row.name:<40} {row.tiles_per_s:8.1f} {spread:<17} {row.tiles_per_s * mb:6.0f} "
            f"{row.per_cpu_s:11.1f} {row.size:6.3f}"
        )
    for what, ratio, aim in targets(rows):
        print(f"{what:<45} {ratio:6.2f}   (aim {aim:g})")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
