"""Compare where tiles are decoded: on the host, or their compression alone there and the prediction on the device.

The host's part is CPU time of one thread, with interleaved rounds, as in `tools.bench_codec`; the device's part is wall
time of a batch that is already there. Sent are the bytes that a batch needs on its way to the device.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rasterio.errors import NotGeoreferencedWarning

from pretrain.data.restore import restore_tiles, used_rows
from shards.cli import Parser, positive, run_command
from shards.format.bounded import BoundedPredictor
from shards.format.codec import SpectralPredictor
from shards.format.planes import COLUMNS, PixelwiseCodec
from tools.bench_codec import WORKING_SET, load_tiles
from tools.gpu_check.hardware import mean_seconds

CODECS: dict[str, PixelwiseCodec] = {
    "fast": SpectralPredictor(pack_low=False),
    "compact": SpectralPredictor(pack_low=True),
    "compact in blocks": SpectralPredictor(pack_low=True, blocks=True),
    "max error noise/2": BoundedPredictor("noise/2"),
}
BATCH = 8


@dataclass(frozen=True)
class Row:
    """One codec.

    Attributes:
        name: of the codec.
        stored, sent: bytes of a tile in its shard and on its way to the device, relative to int16.
        host: MB of pixels per CPU second, decoded by the host alone; median.
        unpacked: the same if the host undoes the compression alone; median.
        speedup, speedup_low, speedup_high: of the host's part, median and quartiles over rounds.
        device: MB of pixels per second, restored by the device.
    """

    name: str
    stored: float
    sent: float
    host: float
    unpacked: float
    speedup: float
    speedup_low: float
    speedup_high: float
    device: float


def measure(tiles: Sequence[np.ndarray], rounds: int, device: torch.device) -> list[Row]:
    """Measure all codecs on the same tiles."""
    encoded = {name: [codec.encode(tile) for tile in tiles] for name, codec in CODECS.items()}
    shape = (len(tiles), *tiles[0].shape)
    repeats = max(1, WORKING_SET // (2 * int(np.prod(shape))))
    targets = np.zeros((repeats, *shape), np.int16)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CODECS}
    for number in range(rounds + 1):
        for name, codec in CODECS.items():
            pair = (_seconds(codec.decode, encoded[name], targets), _seconds(codec.unpack, encoded[name], targets))
            if number:  # the first round warms up
                times[name].append(pair)
    pixels = targets.nbytes / 1e6
    rows = []
    for name, codec in CODECS.items():
        host, unpacked = np.median(times[name], axis=0)
        low, median, high = np.percentile([whole / part for whole, part in times[name]], [25, 50, 75])
        sent, rate = _restored(codec, encoded[name], shape[1:], device)
        stored = sum(map(len, encoded[name])) / targets[0].nbytes
        rows.append(Row(name, stored, sent, pixels / host, pixels / unpacked, median, low, high, rate))
    return rows


def _seconds(work: Callable[..., object], encoded: Sequence[bytes], targets: np.ndarray) -> float:
    begin = time.thread_time()
    for target in targets:
        for data, out in zip(encoded, target, strict=True):
            work(data, out)
    return time.thread_time() - begin


def _restored(
    codec: PixelwiseCodec, encoded: Sequence[bytes], shape: tuple[int, ...], device: torch.device
) -> tuple[float, float]:
    """Return the bytes of planes relative to int16, and the MB of pixels that the device restores a second.

    Raises:
        AssertionError: it restores other values than the CPU's codec.
    """
    encoded = [encoded[number % len(encoded)] for number in range(BATCH)]
    planes, bands = np.zeros((BATCH, *shape), np.int16), np.zeros((BATCH, shape[0], COLUMNS), np.int32)
    for number, data in enumerate(encoded):
        bands[number] = codec.unpack(data, planes[number])
    batch = torch.from_numpy(planes).to(device), torch.from_numpy(bands).to(device)
    expected = np.stack([codec.decode(data) for data in encoded])
    if not np.array_equal(restore_tiles(*batch).cpu().numpy(), expected):
        raise AssertionError(f"{codec.codec_id}: the device restores other values than the host")
    rate = planes.nbytes / 1e6 / mean_seconds(lambda: restore_tiles(*batch), device, 3)
    return float(used_rows(bands).sum() / (2 * BATCH * shape[0])), rate


def main(argv: list[str] | None = None) -> int:
    """Measure, print and return the exit code."""
    parser = Parser(prog="python -m tools.bench_decode", description=__doc__)
    parser.add_argument("tiles", type=Path, nargs="?", help="directory of GeoTIFF tiles (default: a synthetic sample)")
    parser.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.set_defaults(run=_measure_and_print)
    return run_command(parser, argv)


def _measure_and_print(arguments: argparse.Namespace) -> None:
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    torch.set_num_threads(1)
    tiles = load_tiles(arguments.tiles)
    rows = measure(tiles, arguments.rounds, torch.device(arguments.device))
    print(f"{len(tiles)} tiles of {tiles[0].shape}; MB of pixels a second, the host's of one thread's CPU time")
    print(f"{'codec':<20} {'stored':>6} {'sent':>6} {'host':>6} {'unpacked':>8} {'speedup':>7} {'':<12} {'device':>8}")
    for row in rows:
        spread = f"[{row.speedup_low:.2f}, {row.speedup_high:.2f}]"
        print(
            f"{row.name:<20} {row.stored:6.3f} {row.sent:6.3f} {row.host:6.0f} {row.unpacked:8.0f} {row.speedup:7.2f} "
            f"{spread:<12} {row.device:8.0f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
