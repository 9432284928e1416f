"""`estimate`: what packing a source would give with and without a bound on errors, from a sample of its tiles."""

import itertools
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import SourceError, TileError
from shards.format.bounded import BoundedPredictor, noise
from shards.format.codec_registry import codec_of
from shards.format.least_squares import fit
from shards.pack.listing import ListedTile, cut_shards
from shards.pack.scan import PackConfig, find_contents, tile_options
from shards.pack.writer import stored_values
from shards.progress import progress
from shards.sensors.sensor import Sensor
from shards.sources.archive import Archive
from shards.sources.bundles import Bundle
from shards.sources.geotiff import Tile, read_tile
from shards.sources.scene_sensor import find_sensor
from shards.sources.tile_names import SourceTile

BOUNDS = ("noise/4", "noise/2", "3")
SMALLEST = "smallest"
"""The lossless preset that is estimated beside the codec of the options."""

MOST_BUNDLES = 16
PER = 1000
"""Tiles that sizes and times are for if the number of all tiles is unknown."""


@dataclass(frozen=True)
class CodecEstimate:
    """What a codec gives.

    Attributes:
        ratio: int16 bytes of all sampled tiles, divided by their encoded bytes.
        quartiles: of the tiles' ratios: 25 %, median, 75 %.
        encode_mb_s: MB of pixels that are encoded (and, with a bound, checked) in a second of CPU time of one core.
        nbytes: encoded bytes of all tiles.
        seconds: time to read and encode all tiles with the given workers.
    """

    codec: str
    ratio: float
    quartiles: tuple[float, float, float]
    encode_mb_s: float
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What packing a source would give.

    Attributes:
        tiles: number of tiles; ``PER`` if it can't be known without reading archives, see ``is_counted``.
        is_counted: whether all tiles were counted, in files or scenes; False for ``PER`` tiles of archives.
        sampled: tiles of the sample.
        shape: (bands, height, width) of a tile.
        shards: number of shards.
        read_mb_s: MB of pixels that one process read in a second, from storage that may have cached them.
        noise: standard deviation of each band's noise in digital numbers, median of the sampled tiles.
    """

    source: str
    tiles: int
    is_counted: bool
    sampled: int
    shape: tuple[int, ...]
    shards: int
    workers: int
    read_mb_s: float
    wavelength_nm: list[float]
    noise: list[float]
    codecs: list[CodecEstimate]

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield the estimate as lines of text."""
        raw = 2 * self.tiles * int(np.prod(self.shape))
        shown = f"{self.tiles:,} tiles" + ("" if self.is_counted else " (those in archives are not counted)")
        yield f"{self.source}: {shown} of {list(self.shape)} int16, {raw / 1e9:.3f} GB, in {self.shards} shards"
        yield f"{self.sampled} tiles sampled, read at {self.read_mb_s:.0f} MB/s of pixels by one process"
        yield f"{'codec':<20} {'ratio':>6} {'[quartiles]':<14} {'MB/s a core':>11} {'GB':>9} {'workers':>8} {'time':>9}"
        for row in self.codecs:
            spread = f"[{row.quartiles[0]:.2f}, {row.quartiles[2]:.2f}]"
            yield (
                f"{row.codec:<20} {row.ratio:6.2f} {spread:<14} {row.encode_mb_s:11.0f} {row.nbytes / 1e9:9.3f} "
                f"{self.workers:8} {_duration(row.seconds):>9}"
            )
        bands = np.argsort(self.noise, kind="stable")
        median, most = self.noise[bands[len(bands) // 2]], ", ".join(self._band(band) for band in bands[::-1][:4])
        yield f"noise of the bands, digital numbers: median {median:.1f}, least {self._band(bands[0])}, most {most}"

    def _band(self, band: int) -> str:
        return f"{self.noise[band]:.1f} (band {band + 1}, {self.wavelength_nm[band]:.0f} nm)"


def estimate(source: Path, config: PackConfig, wanted: int, workers: int, bounds: Sequence[str] = BOUNDS) -> Estimate:
    """Estimate sizes, noise and time of packing a source; nothing is written.

    Args:
        config: as for `pack`; its codec is estimated beside `smallest` and the bounds.
        wanted: number of tiles to sample.
        workers: processes that would pack.
        bounds: bounds on errors, as for `BoundedPredictor`.

    Raises:
        SourceError: if there are no tiles, or none of the sampled ones can be used.
    """
    sensor = find_sensor(config.sensor)
    inputs = find_contents(source, config, sensor, None, {}, config.seed)
    size = config.size or inputs.size()
    bundles = inputs.bundles(tile_options(config, sensor, size, config.size is not None or inputs.lone))
    codecs = {name: codec_of(name) for name in (config.codec, SMALLEST)}
    codecs |= {f"max error {bound}": BoundedPredictor(bound) for bound in bounds}
    sample = _BundleSample(bundles, wanted) if bundles else _PlainSample(source, inputs.tiles, sensor, size, wanted)
    measures = {name: _Measure() for name in codecs}
    noises, read_s = [], 0.0
    for number, (tile, seconds) in enumerate(progress("estimate", wanted, iter(sample))):
        flat = tile.reshape(len(tile), -1)
        if number == 0:  # compile the loops before anything is timed
            for codec in codecs.values():
                codec.decode(codec.encode(tile), np.empty_like(tile))
        noises.append(noise(flat, tile.shape[2], fit(flat, tile.shape[2])))
        for name, codec in codecs.items():
            measures[name].add(tile, codec)
        read_s, shape = read_s + seconds, tile.shape
    if not noises:
        raise SourceError(f"{source}: none of the sampled tiles can be used: check --sensor, --size and the limits")
    total = sample.total
    tiles = PER if total is None else total
    raw = 2 * int(np.prod(shape))
    return Estimate(
        source=str(source),
        tiles=tiles,
        is_counted=total is not None,
        sampled=len(noises),
        shape=shape,
        shards=_shards(inputs.tiles, config) if not bundles else -(-tiles // config.tiles_per_shard),
        workers=workers,
        read_mb_s=raw * len(noises) / max(read_s, 1e-9) / 1e6,
        wavelength_nm=list(sensor.wavelength_nm),
        noise=np.median(noises, axis=0).round(3).tolist(),
        codecs=[
            measure.estimate(name, raw, tiles, read_s / len(noises), workers) for name, measure in measures.items()
        ],
    )


@dataclass
class _Measure:
    """Encoded sizes of the sampled tiles, and the CPU seconds that encoding took."""

    sizes: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, tile: np.ndarray, codec: Any) -> None:
        begin = time.thread_time()
        encoded = bytes(codec.encode(tile))
        stored_values(tile, encoded, codec, "sample")
        self.seconds += time.thread_time() - begin
        self.sizes.append(len(encoded))

    def estimate(self, name: str, raw: int, tiles: int, read_s: float, workers: int) -> CodecEstimate:
        """Return the estimate for all tiles.

        Args:
            raw: int16 bytes of a tile.
            read_s: seconds to read a tile.
        """
        count, low_median_high = len(self.sizes), np.percentile(raw / np.asarray(self.sizes), [25, 50, 75])
        seconds = self.seconds / count
        return CodecEstimate(
            codec=name,
            ratio=raw * count / sum(self.sizes),
            quartiles=(float(low_median_high[0]), float(low_median_high[1]), float(low_median_high[2])),
            encode_mb_s=raw / max(seconds, 1e-9) / 1e6,
            nbytes=round(tiles * sum(self.sizes) / count),
            seconds=tiles * (read_s + seconds) / workers,
        )


class _PlainSample:
    """Tile files, evenly spaced over the list: iterates over their values and the seconds that reading took."""

    def __init__(self, folder: Path, tiles: Sequence[SourceTile], sensor: Sensor, size: int, wanted: int) -> None:
        self._folder, self._tiles, self._sensor, self._size, self._wanted = folder, tiles, sensor, size, wanted
        self.total: int | None = len(tiles)

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        for number in _spread(len(self._tiles), self._wanted):
            begin = time.perf_counter()
            try:
                tile = read_tile(self._folder / self._tiles[number].path, self._sensor, self._size)
            except TileError:
                continue
            yield tile.values, time.perf_counter() - begin


class _BundleSample:
    """Tiles of evenly spaced bundles: evenly spaced tiles of scenes, and the first ones of archives.

    Tiles of scenes are counted, which takes no reading. An archive would have to be read through for that.
    """

    def __init__(self, bundles: Sequence[Bundle], wanted: int) -> None:
        self._chosen = [bundles[number] for number in _spread(len(bundles), min(wanted, MOST_BUNDLES))]
        self._each, self._scale = -(-wanted // len(self._chosen)), len(bundles) / len(self._chosen)
        self._counts: list[float] = []

    @property
    def total(self) -> int | None:
        """Number of tiles of all bundles, scaled from those that were opened; None if there are archives among them."""
        if any(isinstance(bundle, Archive) for bundle in self._chosen):
            return None
        return round(sum(self._counts) * self._scale)

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        for bundle in self._chosen:
            if isinstance(bundle, Archive):
                yield from _timed(itertools.islice(_usable(bundle, ()), self._each))
                continue
            count = _AllBut(())
            for _ in bundle.tiles(count):
                pass
            spread = _spread(count.asked, self._each)
            usable = 0
            for timed in _timed(_usable(bundle, _AllBut(spread))):
                usable += 1
                yield timed
            self._counts.append(count.asked * usable / max(len(spread), 1))


class _AllBut(Container[str]):
    """The keys to skip: all but some, by the order in which a bundle asks for them, each once."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers, self.asked = frozenset(numbers), 0

    def __contains__(self, key: object) -> bool:
        self.asked += 1
        return self.asked - 1 not in self._numbers


def _usable(bundle: Bundle, skip: Container[str]) -> Iterator[np.ndarray]:
    return (tile.values for _, tile in bundle.tiles(skip) if isinstance(tile, Tile))


def _timed(tiles: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, float]]:
    """Yield tiles with the seconds that each of them took."""
    begin = time.perf_counter()
    for tile in tiles:
        yield tile, time.perf_counter() - begin
        begin = time.perf_counter()


def _spread(count: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` numbers below ``count``, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist() if count else []


def _shards(tiles: Sequence[SourceTile], config: PackConfig) -> int:
    return len(cut_shards([ListedTile(tile) for tile in tiles], config.tiles_per_shard, config.seed))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
