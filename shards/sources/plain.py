"""Bundles of a folder's rasters: plain tiles beside archives and products, and scenes that are cut into tiles."""

import hashlib
import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import rasterio
from rasterio.windows import Window

from shards.errors import TileError
from shards.sensors.sensor import NODATA, Sensor
from shards.sources.bundles import Bundle
from shards.sources.geotiff import Tile, read_tile
from shards.sources.products.tiles import CACHE_BYTES, RIM, moved
from shards.sources.raster import Raster, open_raster
from shards.sources.tile_names import SourceTile

EMPTY = "no measured pixel"
"""Reason for leaving out tiles of a scene."""

PROBED = 32


@dataclass
class PlainTiles(Bundle):
    """A `Bundle` of tile files.

    Attributes:
        folder: folder that the tiles' paths are relative to.
        name: name used in messages.
        size: required height and width of the tiles in pixels.
    """

    kind = "plain tile"

    folder: Path
    name: str
    sources: list[SourceTile]
    sensor: Sensor
    size: int
    filtered: dict[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        return probe(self.folder, [source.path for source in self.sources])

    def tiles(self, skip: Container[str], scratch: Path | None = None) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        for source in self.sources:
            if source.key not in skip:
                path = self.folder / source.path
                try:
                    yield source, read_tile(path, self.sensor, self.size)
                except TileError as error:
                    yield source, TileError(str(error).removeprefix(f"{path}: "))


@dataclass
class PlainScene(Bundle):
    """A `Bundle` of the tiles of one raster, cut from its upper left corner; incomplete tiles are left out and counted.

    Attributes:
        path: path of the raster.
        name: path relative to the source.
        source: the raster as a single tile; each tile's location is this location followed by ``-<row>-<column>``.
        size: height and width of the tiles in pixels.
    """

    kind = "scene to cut"

    path: Path
    name: str
    source: SourceTile
    sensor: Sensor
    size: int
    filtered: dict[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        status = self.path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def tiles(self, skip: Container[str], scratch: Path | None = None) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        self.filtered.clear()
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
            try:
                with open_raster(self.path) as raster:
                    bands = raster.select(self.sensor)
                    yield from cut_raster(raster, bands, self.source, self.size, skip, self.filtered)
            except TileError as error:  # set aside like a tile with other bands
                yield self.source, TileError(str(error).removeprefix(f"{self.path}: "))


def cut_raster(
    raster: Raster,
    bands: Sequence[int],
    source: SourceTile,
    size: int,
    skip: Container[str],
    filtered: dict[str, int],
) -> Iterator[tuple[SourceTile, Tile | TileError]]:
    """Yield the tiles of a raster, cut from its upper left corner.

    Args:
        bands: 1-based numbers of the bands to read.
        source: the raster as a single tile.
        size: height and width of the tiles in pixels.
        filtered: updated with the number of items left out, by reason.
    """
    grid = raster.grid
    if min(grid.shape) < size:
        yield source, TileError(f"{grid.height}x{grid.width} px, smaller than a tile of {size}x{size}")
        return
    rows, columns = grid.height // size, grid.width // size
    _count(filtered, RIM, grid.height * grid.width - rows * columns * size * size)
    for row, column in itertools.product(range(rows), range(columns)):
        part = replace(
            source,
            location=f"{source.location}-{row}-{column}",
            path=f"{source.path}!{row}-{column}",
            scene=source.scene or source.location,
        )
        if part.key in skip:
            continue
        window = Window(column * size, row * size, size, size)
        try:
            values = raster.read(bands, window)
        except TileError as error:
            yield part, TileError(str(error).removeprefix(f"{raster.name}: "))
            continue
        if (values == NODATA).all():
            _count(filtered, EMPTY, 1)
            continue
        yield part, Tile(values, grid.crs, moved(grid.transform, window), raster.date)


def _count(filtered: dict[str, int], reason: str, count: int) -> None:
    if count:
        filtered[reason] = filtered.get(reason, 0) + count


def raster_shape(path: Path) -> tuple[int, int] | None:
    """Read (height, width) from a raster's header; None if it can't be read."""
    try:
        with open_raster(path) as raster:
            return raster.file.height, raster.file.width
    except TileError:
        return None


def probes(tiles: Sequence) -> Sequence:
    """Return about 32 of the tiles, evenly spaced."""
    return tiles[:: max(1, len(tiles) // PROBED)]


def probe(folder: Path, paths: Sequence[str]) -> str:
    """Return a fingerprint of about 32 evenly spaced files of a list: paths, sizes and modification times."""
    digest = hashlib.sha256()
    for path in probes(paths):
        try:
            status = (folder / path).stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError:
            digest.update(f"{path} missing\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def is_scene(shape: tuple[int, int] | None, size: int) -> bool:
    """Return whether a raster of this shape is larger than a tile and must be cut."""
    return shape is not None and min(shape) >= size and shape != (size, size)
