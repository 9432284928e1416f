"""Reading of one raster as one tile: int16 (bands, height, width) with its bands in the sensor's order.

The file's metadata determine how it is read (raster.py): wavelengths (EnMAP products, detector order, 224 bands) or
their absence (SpectralEarth, 202 bands in order), dtype, scale, masks and nodata values.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rasterio.io import MemoryFile

from shards.errors import TileError
from shards.sensors.sensor import Sensor
from shards.sources.grid import Grid
from shards.sources.raster import Raster, open_raster

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""The transform of a tile without a georeference."""


@dataclass(frozen=True)
class Tile:
    """A patch at one date.

    Attributes:
        values: int16 (bands, height, width), reflectance x scale; ``NODATA`` where nothing was measured.
        crs: coordinate reference system as text (``"EPSG:32633"``), or None.
        transform: the six affine coefficients of the pixel grid, in CRS units.
        date: day of acquisition, ISO, or empty.
        quality: known shares of the pixels in [0, 1] by name (shards/format/table.py: QUALITY).
    """

    values: np.ndarray
    crs: str | None
    transform: tuple[float, ...]
    date: str = ""
    quality: dict[str, float] = field(default_factory=dict)

    def center_lonlat(self) -> tuple[float, float]:
        """Longitude and latitude of the center in degrees (WGS 84); NaN if unknown, see `Grid.center_lonlat`."""
        height, width = self.values.shape[1:]
        return Grid(height, width, self.crs, self.transform).center_lonlat()


def read_tile(path: Path | str, sensor: Sensor, size: int | None = None) -> Tile:
    """Read a tile with the bands of ``sensor``.

    Args:
        path: a raster of any format and interleave.
        sensor: sensor whose bands are read.
        size: required height and width of the tile in pixels; None accepts any.

    Raises:
        TileError: the file is missing, truncated, no raster, or has other bands, another size, or values that are no
            digital numbers (shards/sources/digital_numbers.py).
    """
    with open_raster(path) as raster:
        return tile_of(raster, sensor, size)


def read_tile_bytes(data: bytes, name: str, sensor: Sensor, size: int | None = None) -> Tile:
    """Read a tile from the bytes of a GeoTIFF; error messages start with ``name``."""
    with MemoryFile(data) as memory:
        try:
            with open_raster(memory.name) as raster:
                return tile_of(raster, sensor, size)
        except TileError as error:
            raise TileError(str(error).replace(memory.name, name)) from None


def tile_of(raster: Raster, sensor: Sensor, size: int | None = None) -> Tile:
    """Return the tile in an open raster; raises TileError like `read_tile`."""
    grid = raster.grid
    if size is not None and grid.shape != (size, size):
        raise TileError(f"{raster.name}: {grid.height}x{grid.width} px where {size}x{size} were expected")
    return Tile(raster.read(raster.select(sensor)), grid.crs, grid.transform or IDENTITY, raster.date)


def tile_size(path: Path) -> int | None:
    """Return the height of a square tile in pixels from its header; None if it is unreadable or not square."""
    try:
        with open_raster(path) as raster:
            return raster.file.height if raster.file.height == raster.file.width else None
    except TileError:
        return None
