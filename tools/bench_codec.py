"""Compare tile codecs: size, speed per core, and the cost of checksums. Only ratios are meaningful.

Rounds are interleaved (every codec once, then again), times are CPU time of the thread, and each round processes
more memory than the last-level cache holds, so that memcpy does not measure the cache.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from shards.cli import Parser, positive, run_command
from shards.format.bounded import BoundedPredictor
from shards.format.codec import SpectralPredictor
from shards.format.codec_registry import PRESETS
from shards.format.row_predictor import RowPredictor
from shards.pack.writer import checksum
from shards.sensors.sensor import get_sensor
from shards.sources.geotiff import read_tile
from shards.sources.layouts import find_tiles
from tools.sample_data import SampleOptions, make_sample

WORKING_SET = 256 << 20
"""Bytes of pixels decoded per round: larger than the last-level cache of most machines."""


@dataclass(frozen=True)
class Row:
    """One codec: ratio to int16; MB of pixels per CPU second (median, quartiles); the same with two threads."""

    name: str
    ratio: float
    encode: float
    decode: float
    decode_low: float
    decode_high: float
    of_memcpy: float
    two_threads: float


class BandDifference:
    """A baseline: difference of neighboring bands, followed by a compressor of numcodecs."""

    def __init__(self, compressor: Any) -> None:
        self._compressor = compressor

    def encode(self, tile: np.ndarray) -> bytes:
        difference = tile.copy()
        difference[1:] -= tile[:-1]
        return bytes(self._compressor.encode(difference))

    def decode(self, data: bytes, out: np.ndarray) -> None:
        self._compressor.decode(data, out)
        for band in range(1, len(out)):  # full rows at a time: faster than np.cumsum
            out[band] += out[band - 1]


class GeoTiff:
    """A baseline: GDAL's deflate with predictor 2, pixel-interleaved, as in many published archives."""

    def encode(self, tile: np.ndarray) -> bytes:
        shape = {"count": len(tile), "height": tile.shape[1], "width": tile.shape[2], "dtype": "int16"}
        with MemoryFile() as memory:
            with memory.open(driver="GTiff", compress="deflate", predictor=2, interleave="pixel", **shape) as file:
                file.write(tile)
            return bytes(memory.read())

    def decode(self, data: bytes, out: np.ndarray) -> None:
        with MemoryFile(data) as memory, memory.open() as file:
            file.read(out=out)


def codecs() -> dict[str, Any]:
    """Return the compared codecs by name."""
    numcodecs.blosc.use_threads = False  # CPU time of this thread would not include its threads
    blosc = numcodecs.Blosc
    known: dict[str, Any] = dict(PRESETS)
    known |= {
        "fast in blocks": SpectralPredictor(False, blocks=True),
        "compact in blocks": SpectralPredictor(True, True),
        "smallest in one frame": RowPredictor(True),
        "smallest, stored low plane": RowPredictor(False),
    }
    known |= {f"max error {bound}": BoundedPredictor(bound) for bound in ("1", "3", "noise/4", "noise/2")}
    known |= {f"max error {bound} in blocks": BoundedPredictor(bound, blocks=True) for bound in ("noise/4", "noise/2")}
    known["band difference + blosc zstd 3"] = BandDifference(blosc("zstd", 3, blosc.BITSHUFFLE))
    known["band difference + blosc lz4"] = BandDifference(blosc("lz4", 5, blosc.BITSHUFFLE))
    known["blosc zstd 3"] = blosc("zstd", 3, blosc.BITSHUFFLE)
    known["GeoTIFF deflate"] = GeoTiff()
    try:
        from numcodecs.pcodec import PCodec

        known["band difference + pcodec"] = BandDifference(PCodec(level=8))
    except ImportError:
        print("not installed, skipped: pcodec", file=sys.stderr)
    return known


def measure(tiles: Sequence[np.ndarray], rounds: int) -> list[Row]:
    """Measure all codecs on the same tiles."""
    known, pixels = codecs(), sum(tile.nbytes for tile in tiles)
    repeats = max(1, -(-WORKING_SET // pixels))
    outs = [[np.empty_like(tile) for tile in tiles] for _ in range(repeats)]
    encoded: dict[str, list[bytes]] = {}
    encoding = {}
    for name, codec in known.items():
        codec.encode(tiles[0])  # compiles and warms up
        encoding[name], encoded[name] = _timed(_encode, codec, tiles)
        _decode(codec, encoded[name], outs[:1])
    times: dict[str, list[float]] = {name: [] for name in ("memcpy", *known)}
    for _ in range(rounds):
        times["memcpy"].append(_timed(_copy, tiles, outs)[0])
        for name, codec in known.items():
            times[name].append(_timed(_decode, codec, encoded[name], outs)[0])
    memcpy = float(np.median(times["memcpy"]))
    total = pixels * repeats / 1e6
    rows = [Row("memcpy", 1.0, total / memcpy, *_speeds(total, times["memcpy"]), 1.0, float("nan"))]
    for name, codec in known.items():
        rows.append(
            Row(
                name,
                pixels / sum(map(len, encoded[name])),
                pixels / 1e6 / encoding[name],
                *_speeds(total, times[name]),
                memcpy / float(np.median(times[name])),
                _scaling(codec, encoded[name], outs),
            )
        )
    return rows


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    begin = time.thread_time()
    result = work(*arguments)
    return time.thread_time() - begin, result


def _copy(tiles: Sequence[np.ndarray], outs: Sequence[Sequence[np.ndarray]]) -> None:
    for copy in outs:
        for tile, out in zip(tiles, copy, strict=True):
            np.copyto(out, tile)


def _encode(codec: Any, tiles: Sequence[np.ndarray]) -> list[bytes]:
    return [codec.encode(tile) for tile in tiles]


def _decode(codec: Any, encoded: Sequence[bytes], outs: Sequence[Sequence[np.ndarray]]) -> None:
    for copy in outs:
        for data, out in zip(encoded, copy, strict=True):
            codec.decode(data, out)


def _speeds(total: float, times: Sequence[float]) -> tuple[float, float, float]:
    slow, median, fast = np.percentile(times, [75, 50, 25])
    return total / median, total / slow, total / fast


def _scaling(codec: Any, encoded: Sequence[bytes], outs: Sequence[Sequence[np.ndarray]]) -> float:
    """Return the speedup of two threads over one for the same work, in wall time."""
    begin = time.perf_counter()
    _decode(codec, encoded, outs)
    serial = time.perf_counter() - begin
    halves = [outs[::2], outs[1::2]] if len(outs) > 1 else [[half] for half in (outs[0], outs[0])]
    with ThreadPoolExecutor(2) as pool:
        begin = time.perf_counter()
        list(pool.map(lambda half: _decode(codec, encoded, half), halves))
        parallel = time.perf_counter() - begin
    return serial / parallel if len(outs) > 1 else 2 * serial / parallel


def measure_checksums(tiles: Sequence[np.ndarray], rounds: int) -> dict[str, float]:
    """Return the GB/s of each checksum and of memcpy on the bytes of the tiles."""
    functions: dict[str, Callable[[np.ndarray], object]] = {"memcpy": np.copy, "xxh3": checksum}
    try:
        import google_crc32c

        functions["crc32c"] = lambda tile: google_crc32c.value(tile.tobytes())
    except ImportError:
        print("not installed, skipped: google-crc32c", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(_timed(_apply, function, tiles)[0])
    return {name: sum(tile.nbytes for tile in tiles) / 1e9 / float(np.median(values)) for name, values in times.items()}


def _apply(function: Callable[[np.ndarray], object], tiles: Sequence[np.ndarray]) -> None:
    for tile in tiles:
        function(tile)


def load_tiles(source: Path | None) -> list[np.ndarray]:
    """Return the tiles of a directory, or of a temporary synthetic sample."""
    sensor = get_sensor("enmap")
    if source is not None:
        return [read_tile(source / tile.path, sensor).values for tile in find_tiles(source, sensor.name)]
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample"
        make_sample(sample, SampleOptions(locations=8))
        return load_tiles(sample)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.bench_codec", description=__doc__)
    parser.add_argument("tiles", type=Path, nargs="?", help="directory of GeoTIFF tiles (default: a synthetic sample)")
    parser.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.set_defaults(run=_measure_and_print)
    return parser


def _measure_and_print(arguments: argparse.Namespace) -> None:
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    tiles = load_tiles(arguments.tiles)
    rows, checksums = measure(tiles, arguments.rounds), measure_checksums(tiles, arguments.rounds)
    print(f"{len(tiles)} tiles of {tiles[0].shape}; MB of pixels per CPU second of one thread, [quartiles]")
    print(f"{'codec':<32} {'ratio':>6} {'encode':>7} {'decode':>7} {'':<15} {'of memcpy':>9} {'2 threads':>9}")
    for row in rows:
        spread = f"[{row.decode_low:.0f}, {row.decode_high:.0f}]"
        print(
            f"{row.name:<32} {row.ratio:6.3f} {row.encode:7.0f} {row.decode:7.0f} {spread:<15} "
            f"{row.of_memcpy:9.3f} {row.two_threads:9.2f}"
        )
    print("checksums, GB/s: " + ", ".join(f"{name} {speed:.1f}" for name, speed in checksums.items()))
    if arguments.json:
        table = {"codecs": [asdict(row) for row in rows], "checksums_gb_s": checksums}
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
