"""How small predictions and coders could make a tile, and how fast the coders of numcodecs decode the residuals.

The lossless codecs predict a band from the three below it (`compact`), and correct that by the row above and by
residuals (`smallest`); Zstandard compresses what is left. For both, and for a prediction with coefficients for each of
eight spectral classes, this program measures the entropy of the residuals (what an ideal coder with a table for each
band would reach), the size of what coders really make of them, and the CPU time of decoding, with the loop that undoes
the prediction. Sizes include coefficients and the map of classes.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import Zlib, Zstd
from rasterio.errors import NotGeoreferencedWarning

from shards.cli import Parser, positive, run_command
from shards.format import kernels, row_kernels
from shards.format.frames import compress, decompress
from shards.format.kernels import SCALE, _jit, _rounded, _unzigzag, f32
from shards.format.least_squares import WEIGHTS, fit
from shards.format.planes import BLOCK
from shards.sensors.sensor import NODATA
from tools.bench_codec import load_tiles

CLASSES = 8
FIT_ROWS = 4  # as in shards/format/least_squares.py
BLOCK_ROWS = 16


@dataclass(frozen=True)
class Prediction:
    """A tile's residuals and what a reader needs besides them.

    Attributes:
        codes: uint16 (bands, height, width), zig-zag residuals.
        side_bytes: bytes of coefficients and classes.
        restore: undoes the prediction, from planes of low and high bytes into ``out``, all of the tile's shape.
    """

    codes: np.ndarray
    side_bytes: float
    restore: Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def predict_by_bands(tile: np.ndarray) -> Prediction:
    """Predict as `compact` does."""
    bands, _, width = tile.shape
    units = fit(tile.reshape(bands, -1), width)
    low, high = (np.empty(tile.shape, np.uint8).reshape(bands, -1) for _ in range(2))
    kernels.difference(tile.reshape(bands, -1), units, low, high)

    def restore(low: np.ndarray, high: np.ndarray, out: np.ndarray) -> None:
        planes = (plane.reshape(bands, -1) for plane in (low, high))
        kernels.restore(*planes, np.arange(bands), units, out.reshape(bands, -1), BLOCK)

    return Prediction((low | high.astype(np.uint16) << 8).reshape(tile.shape), units.nbytes, restore)


def predict_by_rows(tile: np.ndarray) -> Prediction:
    """Predict as `smallest` does."""
    bands, _, width = tile.shape
    numbers = np.pad(fit(tile.reshape(bands, -1), width), ((0, 0), (0, WEIGHTS)))
    low, high = (np.empty(tile.shape, np.uint8) for _ in range(2))
    row_kernels.difference(tile, numbers, np.int16(NODATA), low, high)

    def restore(low: np.ndarray, high: np.ndarray, out: np.ndarray) -> None:
        row_kernels.restore(low, high, np.arange(bands), numbers, max(1, BLOCK // width), out)

    return Prediction(low | high.astype(np.uint16) << 8, numbers.nbytes, restore)


def predict_by_classes(tile: np.ndarray) -> Prediction:
    """Predict each band from the three below it, with coefficients for each class of spectra."""
    classes = spectral_classes(tile)
    counts = np.bincount(classes.ravel(), minlength=CLASSES)
    codes, units = np.empty(tile.shape, np.uint16), np.zeros((CLASSES, len(tile), 4), np.int16)
    for band in range(len(tile)):
        below = [tile[band - step] if band >= step else np.zeros_like(tile[0]) for step in (1, 2, 3)]
        features = np.stack([*below, np.ones_like(tile[0])])
        wanted, predicted = tile[band].astype(np.float64), np.zeros(tile.shape[1:], np.float32)
        measured = (tile[band] != NODATA) & (features != NODATA).all(0)
        for number in range(CLASSES):
            of_class = classes == number
            fitted = (of_class & measured)[::FIT_ROWS]
            x, y = features[:, ::FIT_ROWS][:, fitted].astype(np.float64), wanted[::FIT_ROWS][fitted]
            normal = x @ x.T + max(len(y), 1) * np.diag([0.25, 0.25, 0.25, 1e-9])
            found = np.linalg.solve(normal, x @ y) * np.array([2048.0, 2048.0, 2048.0, 1.0])
            units[number, band] = np.clip(np.rint(found), -32768, 32767)
            sums = np.full(int(of_class.sum()), f32(units[number, band, -1]))
            for unit, feature in zip(units[number, band, :-1], features, strict=False):  # in the order of `restore`
                sums += f32(unit) * SCALE * feature[of_class].astype(np.float32)
            predicted[of_class] = sums
        rounded = np.floor(np.clip(predicted, f32(-32768), f32(32767)) + f32(32768.5)).astype(np.int32) - 32768
        residual = (tile[band] - rounded).astype(np.int16)
        codes[band] = (residual << 1 ^ residual >> 15).view(np.uint16)
    shares, by_band = counts / classes.size, np.ascontiguousarray(units.transpose(1, 2, 0))
    bits = -classes.size * float((shares[shares > 0] * np.log2(shares[shares > 0])).sum())

    def restore(low: np.ndarray, high: np.ndarray, out: np.ndarray) -> None:
        planes = (plane.reshape(len(tile), -1) for plane in (low, high))
        restore_classes(*planes, by_band, classes.ravel(), tile.shape[2], out.reshape(len(tile), -1))

    return Prediction(codes, units.nbytes + bits / 8, restore)


PREDICTIONS: dict[str, Callable[[np.ndarray], Prediction]] = {
    "3 bands (compact)": predict_by_bands,
    f"3 bands, {CLASSES} classes": predict_by_classes,
    "rows and residuals (smallest)": predict_by_rows,
}


def spectral_classes(tile: np.ndarray) -> np.ndarray:
    """Cluster the spectra of a tile into ``CLASSES`` by k-means from a fixed start, uint8 (height, width)."""
    spectra = tile[:: max(1, len(tile) // 16)].reshape(-1, tile[0].size).T.astype(np.float32)
    centers = spectra[np.argsort(spectra.sum(1), kind="stable")[:: max(1, len(spectra) // CLASSES)][:CLASSES]]
    for _ in range(8):
        distances = (centers**2).sum(1) - 2 * spectra @ centers.T
        nearest = distances.argmin(1)
        centers = np.stack(
            [spectra[nearest == k].mean(0) if (nearest == k).any() else centers[k] for k in range(CLASSES)]
        )
    return nearest.astype(np.uint8).reshape(tile.shape[1:])


def entropy_bytes(codes: np.ndarray) -> float:
    """Return the bytes of the codes in an ideal coder with a table for each band, without the tables."""
    bits = 0.0
    for band in codes:
        counts = np.unique(band, return_counts=True)[1] / band.size
        bits -= band.size * float((counts * np.log2(counts)).sum())
    return bits / 8


@_jit
def restore_classes(
    low: np.ndarray, high: np.ndarray, units: np.ndarray, classes: np.ndarray, width: int, out: np.ndarray
) -> None:
    """Undo a prediction from three bands whose ``units`` (bands, predictors, classes) depend on the pixel's class."""
    bands, pixels = out.shape
    zero = np.zeros(BLOCK_ROWS * width, np.int16)
    scaled = np.empty(units.shape[1:], np.float32)
    for start in range(0, pixels, BLOCK_ROWS * width):
        end = min(start + BLOCK_ROWS * width, pixels)
        for band in range(bands):
            for k in range(4):
                for number in range(units.shape[2]):
                    scaled[k, number] = f32(units[band, k, number]) * (SCALE if k < 3 else f32(1))
            c1, c2, c3, constant = scaled[0], scaled[1], scaled[2], scaled[3]
            below1 = out[band - 1, start:end] if band > 0 else zero
            below2 = out[band - 2, start:end] if band > 1 else zero
            below3 = out[band - 3, start:end] if band > 2 else zero
            lows, highs, target = low[band, start:end], high[band, start:end], out[band, start:end]
            of_pixel = classes[start:end]
            for i in range(end - start):
                k = of_pixel[i]
                prediction = constant[k] + c1[k] * f32(below1[i]) + c2[k] * f32(below2[i]) + c3[k] * f32(below3[i])
                target[i] = np.int16(_rounded(prediction) + _unzigzag(lows[i], highs[i]))


class PlaneCoder:
    """Codes as two planes of bytes, as the codec stores them.

    Args:
        codec: a compressor of numcodecs.
        by_band: whether each band is a frame.
        blocks: whether a plane is in frames of 64 KiB that are decoded in one call (shards/format/frames.py).
    """

    def __init__(self, codec: Any, by_band: bool = False, blocks: bool = False) -> None:
        self._codec, self._by_band, self._blocks = codec, by_band, blocks

    def encode(self, codes: np.ndarray) -> list[bytes]:
        """Return the parts of the low plane, then those of the bands that have high bytes."""
        low, high = codes.astype(np.uint8), (codes >> 8).astype(np.uint8)
        parts = self._parts(low, high[high.any((1, 2))])
        return [
            compress(self._codec, part, True) if self._blocks else bytes(self._codec.encode(part)) for part in parts
        ]

    def decode(self, parts: Sequence[bytes], low: np.ndarray, high: np.ndarray) -> None:
        """Fill the planes; ``high`` has the bands that have high bytes."""
        for part, target in zip(parts, self._parts(low, high), strict=True):
            if self._blocks:
                decompress(self._codec, np.frombuffer(part, np.uint8), target, True)
            else:
                self._codec.decode(part, target)

    def _parts(self, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
        planes = [plane.reshape(len(plane), -1) for plane in (low, high) if len(plane)]
        return [band for plane in planes for band in plane] if self._by_band else planes


class NumberCoder:
    """Residuals of each band in one call of a compressor of numbers (PCodec), which has no planes."""

    def __init__(self, codec: Any) -> None:
        self._codec = codec

    def encode(self, codes: np.ndarray) -> list[bytes]:
        """Return the bytes of each band."""
        return [bytes(self._codec.encode((band >> 1 ^ -(band & 1)).view(np.int16))) for band in codes]

    def decode(self, frames: Sequence[bytes], low: np.ndarray, high: np.ndarray) -> None:
        """Decode all bands into an array of their own."""
        values = np.empty(low.shape, np.int16)
        for frame, target in zip(frames, values, strict=True):
            self._codec.decode(frame, target)


def coders() -> dict[str, Any]:
    """Return the compared coders by name."""
    known: dict[str, Any] = {
        "zstd, one frame": PlaneCoder(Zstd(level=1)),
        "zstd, blocks": PlaneCoder(Zstd(level=1), blocks=True),
        "zstd, each band": PlaneCoder(Zstd(level=1), by_band=True),
        "zlib, each band": PlaneCoder(Zlib(level=1), by_band=True),
    }
    try:
        from numcodecs.pcodec import PCodec

        known["pcodec, each band"] = NumberCoder(PCodec(level=8, delta_encoding_order=0))
    except (ImportError, TypeError):
        print("not installed, skipped: pcodec", file=sys.stderr)
    return known


@dataclass
class Case:
    """A coder of the residuals of a prediction; times are CPU seconds of decoding all tiles, one for each round.

    Attributes:
        decode: runs the coder; None for an ideal one.
        loop: undoes the prediction.
    """

    prediction: str
    coder: str
    ratio: float
    decode: Callable[[], None] | None
    loop: Callable[[], None]
    decode_s: list[float] = field(default_factory=list)
    loop_s: list[float] = field(default_factory=list)


def measure(tiles: Sequence[np.ndarray], rounds: int) -> list[Case]:
    """Measure all predictions and coders on the same tiles, in interleaved rounds."""
    cases = [case for name in PREDICTIONS for case in _cases(tiles, name)]
    timed = [case for case in cases if case.decode is not None]
    for number in range(rounds + 1):
        for case in timed:
            assert case.decode is not None
            seconds = _thread_seconds(case.decode), _thread_seconds(case.loop)
            if number:  # the first round warms up
                case.decode_s.append(seconds[0])
                case.loop_s.append(seconds[1])
    return cases


def _cases(tiles: Sequence[np.ndarray], name: str) -> Iterator[Case]:
    """Yield a prediction's ideal coder and the real ones."""
    made = [PREDICTIONS[name](tile) for tile in tiles]
    raw, side = sum(tile.nbytes for tile in tiles), sum(prediction.side_bytes for prediction in made)
    loop = _loop(tiles, made)
    yield Case(name, "ideal, a table a band", raw / (side + sum(entropy_bytes(one.codes) for one in made)), None, loop)
    for coder_name, coder in coders().items():
        encoded = [coder.encode(prediction.codes) for prediction in made]
        stored = side + sum(len(part) for parts in encoded for part in parts)
        yield Case(name, coder_name, raw / stored, _decoding(coder, encoded, made), loop)


def _loop(tiles: Sequence[np.ndarray], made: Sequence[Prediction]) -> Callable[[], None]:
    """Return what undoes the predictions of all tiles, after a check that this restores them."""
    planes = [[(each.codes >> shift).astype(np.uint8) for shift in (0, 8)] for each in made]
    outs = [np.empty_like(tile) for tile in tiles]

    def run() -> None:
        for (low, high), each, out in zip(planes, made, outs, strict=True):
            each.restore(low, high, out)

    run()
    for out, tile in zip(outs, tiles, strict=True):
        np.testing.assert_array_equal(out, tile)
    return run


def _decoding(coder: Any, encoded: Sequence[list[bytes]], made: Sequence[Prediction]) -> Callable[[], None]:
    low = np.empty(made[0].codes.shape, np.uint8)
    highs = [np.empty((int((each.codes >> 8).any((1, 2)).sum()), *low.shape[1:]), np.uint8) for each in made]

    def run() -> None:
        for parts, high in zip(encoded, highs, strict=True):
            coder.decode(parts, low, high)

    return run


def _thread_seconds(run: Callable[[], None]) -> float:
    begin = time.thread_time()
    run()
    return time.thread_time() - begin


def main(argv: list[str] | None = None) -> int:
    """Measure, print and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.codec_limits", description=__doc__)
    parser.add_argument("tiles", type=Path, nargs="?", help="directory of GeoTIFF tiles (default: a synthetic sample)")
    parser.add_argument("--most", type=positive, default=4, help="tiles to measure (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    parser.set_defaults(run=_measure_and_print)
    return parser


def _measure_and_print(arguments: argparse.Namespace) -> None:
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    tiles = load_tiles(arguments.tiles)
    tiles = tiles[:: -(-len(tiles) // arguments.most)]
    raw = sum(tile.nbytes for tile in tiles) / 1e6
    print(f"{len(tiles)} tiles of {tiles[0].shape}; MB of pixels per CPU second of one thread")
    print(f"{'prediction':<34} {'coder':<22} {'ratio':>6} {'coder':>7} {'loop':>7} {'both':>7} {'relative':>8}")
    first = None
    for case in measure(tiles, arguments.rounds):
        line = f"{case.prediction:<34} {case.coder:<22} {case.ratio:6.3f}"
        if case.decode is not None:
            seconds = [np.median(case.decode_s), np.median(case.loop_s)]
            both = float(sum(seconds))
            first = first or both
            speeds = [raw / value for value in (*seconds, both)]
            line += "".join(f" {speed:7.0f}" for speed in speeds) + f" {first / both:8.2f}"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
