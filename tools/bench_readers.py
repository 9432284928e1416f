"""Measure many readers over one folder of shards, as the ranks of a run read it: what scales with their number.

Every process is one rank with a reader of its own. All start together and read their parts of the same global batches,
in a global or a windowed order, from the folder or through copies on the node's disk (data.stage), for one epoch. Every
sample must come once. The page cache is warm, so that the table shows
what processes cost each other: CPU, memory, opens, bytes. What a file system on other machines does is not in it.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import rasterio

from shards.cli import Parser, positive, run_command
from shards.errors import ForgeError
from shards.format.codec import SpectralPredictor
from shards.order.plan import SamplePlan, rank_samples
from shards.order.selection import OrderConfig
from shards.pack.build import PackConfig, pack
from shards.read.reader import ShardReader
from tools.bench_codec import load_tiles

BATCH, WINDOW = 4, 4
"""Tiles of a rank's micro batch, and shards of a window."""


@dataclass(frozen=True)
class Way:
    """How the tiles are read: "global" or "windowed", and through staged copies or not."""

    shuffle: str
    staged: bool

    def __str__(self) -> str:
        return f"{self.shuffle}, {'staged' if self.staged else 'from the folder'}"


@dataclass(frozen=True)
class Read:
    """What one process reports.

    Attributes:
        seconds: of reading, from the common start.
        open_seconds: of opening the dataset, before it.
        cpu_seconds: of reading; imports and compiled loops are loaded before it.
        first: seconds to its first batch.
        megabytes: read from files by system calls.
        files: shards that it holds open.
        memory: proportional set size in MB: shared pages divided among those that share them.
        staged: copies that it made.
        digest: sum of a hash of the sample numbers that it read.
        tiles: number of tiles read.
    """

    seconds: float
    open_seconds: float
    cpu_seconds: float
    first: float
    megabytes: float
    files: int
    memory: float
    staged: int
    digest: int
    tiles: int


@dataclass(frozen=True)
class Row:
    """A way with a number of processes: medians over rounds, and the range of tiles per second."""

    way: str
    processes: int
    tiles_per_s: float
    low: float
    high: float
    cpu_ms: float
    open_ms: float
    first_ms: float
    megabytes: float
    files: float
    memory: float
    copies: int


def read_as_rank(
    rank: int, world: int, steps: int, shards: Path, way: Way, stage: Path | None, start: Barrier, results: object
) -> None:
    """Read the parts of one rank and put a `Read` into the queue ``results``."""
    begin = time.perf_counter()
    reader = ShardReader(shards)
    if stage is not None:
        reader.stage(stage)
    order = OrderConfig(shuffle=way.shuffle, window=WINDOW)  # type: ignore[arg-type]
    plan = SamplePlan(reader.table, np.arange(len(reader)), reader.manifest.content_hash, 0, order)
    opened = time.perf_counter() - begin
    batch = np.empty((BATCH, *reader.tile_shape), np.int16)
    _load_decoder()
    start.wait()
    before, digest, first = read_bytes(), 0, 0.0
    begin, cpu, epoch = time.perf_counter(), time.process_time(), -1
    for step in range(steps):
        samples = rank_samples(step, BATCH * world, rank, world)
        if epoch != (epoch := int(plan.epochs(samples[:1])[0])):
            reader.prefetch(plan.shards_from(int(samples[0])).tolist())
        reader.read(plan.tiles(samples), batch)
        digest += sum(hash_of(int(sample)) for sample in samples)
        first = first or time.perf_counter() - begin
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    megabytes, files, memory = (read_bytes() - before) / 1e6, open_shards(), pss()
    start.wait()  # no one's memory is given back before all have measured theirs
    counters = reader.counters
    reader.close()
    results.put(  # type: ignore[attr-defined]
        Read(
            seconds,
            opened,
            cpu,
            first,
            megabytes,
            files,
            memory,
            counters.get("staged", 0),
            digest,
            steps * BATCH,
        )
    )


def _load_decoder() -> None:
    """Load the compiled loops, which takes each process a second of CPU once in a run of hours."""
    codec = SpectralPredictor(pack_low=True)
    codec.decode(codec.encode(np.zeros((4, 8, 8), np.int16)))


def hash_of(sample: int) -> int:
    """Return 64 bits of a sample number, whose sum over samples tells whether each came once."""
    return int.from_bytes(hashlib.blake2b(sample.to_bytes(8, "big"), digest_size=8).digest(), "big")


def read_bytes() -> int:
    """Return the bytes that this process has read from files, cached or not."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def open_shards() -> int:
    """Return the number of shards that this process holds open."""
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sum(link.endswith(".tar") for link in links)


def pss() -> float:
    """Return the memory of this process in MB, of which shared pages count in parts."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (kilobytes,) = [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    return kilobytes / 1e3


def run(shards: Path, way: Way, processes: int, tiles: int, folder: Path) -> list[Read]:
    """Start the processes and return what they report; raises ForgeError if a sample was lost or came twice."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.SimpleQueue()
    stage = Path(tempfile.mkdtemp(dir=folder, prefix="stage-")) if way.staged else None
    steps = max(1, tiles // (BATCH * processes))
    ranks = [
        context.Process(target=read_as_rank, args=(rank, processes, steps, shards, way, stage, start, results))
        for rank in range(processes)
    ]
    for process in ranks:
        process.start()
    reads = [results.get() for _ in ranks]
    for process in ranks:
        process.join()
    if stage is not None:
        shutil.rmtree(stage)
    expected = sum(hash_of(sample) for sample in range(steps * BATCH * processes))
    if sum(one.digest for one in reads) != expected:
        raise ForgeError(f"{way}, {processes} processes: samples were lost or came twice")
    return reads


def summarize(way: Way, processes: int, rounds: Sequence[list[Read]]) -> Row:
    """Return the medians over rounds, of the means over processes."""
    rates = [sum(one.tiles for one in reads) / max(one.seconds for one in reads) for reads in rounds]

    def median(name: str, scale: float = 1.0) -> float:
        means = [float(np.mean([getattr(one, name) for one in reads])) for reads in rounds]
        return scale * float(np.median(means))

    tiles = sum(one.tiles for one in rounds[0]) / processes
    copies = int(np.median([sum(one.staged for one in reads) for reads in rounds]))
    return Row(
        str(way),
        processes,
        float(np.median(rates)),
        min(rates),
        max(rates),
        median("cpu_seconds", 1e3 / tiles),
        median("open_seconds", 1e3),
        median("first", 1e3),
        median("megabytes") / tiles,
        median("files"),
        median("memory"),
        copies,
    )


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.bench_readers", description=__doc__)
    parser.add_argument("tiles", type=Path, nargs="?", help="directory of GeoTIFF tiles (default: a synthetic sample)")
    parser.add_argument("--processes", type=positive, nargs="+", default=[1, 8, 64], help="default: 1 8 64")
    parser.add_argument(
        "--tiles", type=positive, default=1024, dest="count", help="tiles packed (default: %(default)s)"
    )
    parser.add_argument("--size", type=positive, default=64, help="pixels of a side of a tile (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.set_defaults(run=_measure_and_print)
    return parser


def _measure_and_print(arguments: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-readers-"))
    try:
        shards = pack_tiles(folder, arguments)
        ways = [Way(shuffle, staged) for shuffle in ("global", "windowed") for staged in (False, True)]
        found: dict[tuple[Way, int], list[list[Read]]] = {}
        for number in range(arguments.rounds):
            for way in ways:
                for processes in arguments.processes:
                    print(f"round {number + 1}/{arguments.rounds}: {way}, {processes} processes", file=sys.stderr)
                    reads = run(shards, way, processes, arguments.count, folder)
                    found.setdefault((way, processes), []).append(reads)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [summarize(way, processes, rounds) for (way, processes), rounds in found.items()]
    print(f"{arguments.count} tiles of {arguments.size} px, {os.cpu_count()} cores, batches of {BATCH}, medians of "
          f"{arguments.rounds} rounds; per process and tile where it says so")  # fmt: skip
    print(f"{'way':<28}{'processes':>10}{'tiles/s':>9} {'[range]':<14}{'CPU ms/tile':>12}{'open ms':>9}{'first ms':>9}"
          f"{'MB/tile':>9}{'open files':>11}{'memory MB':>10}{'copies':>7}")  # fmt: skip
    for row in rows:
        print(
            f"{row.way:<28}{row.processes:>10}{row.tiles_per_s:>9.0f} {f'[{row.low:.0f}, {row.high:.0f}]':<14}"
            f"{row.cpu_ms:>12.2f}{row.open_ms:>9.0f}{row.first_ms:>9.0f}{row.megabytes:>9.2f}{row.files:>11.1f}"
            f"{row.memory:>10.0f}{row.copies:>7}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def pack_tiles(folder: Path, arguments: argparse.Namespace) -> Path:
    """Pack as many tiles as asked for, made from those at hand; returns the folder of the shards."""
    loaded = load_tiles(arguments.tiles)
    (folder / "tiles").mkdir()
    for number in range(arguments.count):
        tile = np.roll(loaded[number % len(loaded)], number, axis=2)[:, : arguments.size, : arguments.size]
        shape = {"count": len(tile), "height": tile.shape[1], "width": tile.shape[2], "dtype": "int16"}
        with rasterio.open(folder / "tiles" / f"{number:06d}.tif", "w", driver="GTiff", **shape) as file:
            file.write(tile)
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=32))
    shutil.rmtree(folder / "tiles")
    return folder / "shards"


def main(argv: list[str] | None = None) -> int:
    """Measure, print and return the exit code."""
    return run_command(build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
