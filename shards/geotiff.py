"""One GeoTIFF in, one tile out: int16 (bands, height, width) with its bands in the sensor's order.

What a file says of itself decides how it is read: wavelength tags (EnMAP products, detector order,
224 bands) or their absence (SpectralEarth, 202 bands in order), the dtype and the nodata value.
"""

import math
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # what rasterio.warp lets through from PROJ; it has no public name
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.warp import transform as transform_points

from shards.errors import TileError
from shards.sensors import NODATA, Sensor

GDAL_OPTIONS = {"GDAL_PAM_ENABLED": "NO", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""No .aux.xml files beside the archive, and no listing of a directory for each file that is opened."""

FARTHEST = 1e9
"""No coordinate on Earth is larger in metres or feet. PROJ takes turns off a longitude one by one: 1e300 hangs it."""


@dataclass(frozen=True)
class Tile:
    """One patch of one date.

    Attributes:
        values: int16 (bands, height, width), reflectance x scale; ``NODATA`` where nothing was measured.
        crs: coordinate reference system as text (``"EPSG:32633"``), or None.
        transform: the six affine coefficients of the pixel grid, in CRS units.
        date: day of acquisition, ISO, or empty.
        quality: shares of the pixels in [0, 1] by name (shards/table.py: QUALITY), those that are known.
    """

    values: np.ndarray
    crs: str | None
    transform: tuple[float, ...]
    date: str = ""
    quality: dict[str, float] = field(default_factory=dict)

    def centre_lonlat(self) -> tuple[float, float]:
        """Longitude and latitude of the centre in degrees (WGS 84); NaN without a georeference, or with one
        that leads nowhere on Earth (a local grid, coordinates beyond the projection): no reason to lose the tile.
        """
        if self.crs is None:
            return math.nan, math.nan
        height, width = self.values.shape[1:]
        a, b, c, d, e, f = self.transform
        x, y = a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f
        if not abs(x) + abs(y) < FARTHEST:  # NaN too
            return math.nan, math.nan
        try:
            (lon,), (lat,) = transform_points(self.crs, "EPSG:4326", [x], [y])
        except (CPLE_BaseError, CRSError):
            return math.nan, math.nan
        return (float(lon), float(lat)) if math.isfinite(lon) and math.isfinite(lat) else (math.nan, math.nan)


def read_tile(path: Path, sensor: Sensor, size: int | None = None) -> Tile:
    """Read a tile with the bands of ``sensor``.

    Args:
        path: a GeoTIFF of any interleave.
        sensor: whose bands to take.
        size: height and width that the tile must have, in pixels; None accepts any.

    Raises:
        TileError: the file is missing, truncated, no GeoTIFF, or has another band count, size or dtype.
    """
    try:
        with rasterio.Env(**GDAL_OPTIONS), open_geotiff(path) as file:
            return _read(file, sensor, size)
    except TileError as error:
        raise TileError(f"{path}: {error}") from None
    except (RasterioError, OSError, ValueError) as error:
        raise TileError(f"{path}: not a readable GeoTIFF ({_first_line(error)})") from None


def read_tile_bytes(data: bytes, name: str, sensor: Sensor, size: int | None = None) -> Tile:
    """The same from the bytes of a GeoTIFF; errors begin with ``name``."""
    try:
        with rasterio.Env(**GDAL_OPTIONS), MemoryFile(data) as memory, open_geotiff(memory.name) as file:
            return _read(file, sensor, size)
    except TileError as error:
        raise TileError(f"{name}: {error}") from None
    except (RasterioError, OSError, ValueError) as error:
        raise TileError(f"{name}: not a readable GeoTIFF ({_first_line(error)})") from None


def _read(file: Any, sensor: Sensor, size: int | None) -> Tile:
    if size is not None and (file.height, file.width) != (size, size):
        raise TileError(f"{file.height}x{file.width} px where {size}x{size} were expected")
    positions = sensor.select_bands(file.count, band_wavelengths(file))
    values = file.read([int(position) + 1 for position in positions])
    crs = file.crs.to_string() if file.crs else None
    return Tile(as_int16(values, file.nodata), crs, tuple(file.transform)[:6], _date(file))


def _date(file: Any) -> str:
    """ISO day of EnMAP-Box's ``start_time`` tag, else of the TIFF's DateTime; empty where neither is a date."""
    for name in ("start_time", "TIFFTAG_DATETIME"):  # 2022-07-24T10:45:26, 2022:07:24 10:45:26
        with suppress(ValueError):  # DateTime is often 0000:00:00
            return date.fromisoformat(file.tags().get(name, "")[:10].replace(":", "-")).isoformat()
    return ""


def tile_size(path: Path) -> int | None:
    """Height of a square tile from the header alone, in pixels; None where it can't be read or isn't square."""
    try:
        with rasterio.Env(**GDAL_OPTIONS), open_geotiff(path) as file:
            return file.height if file.height == file.width else None
    except (RasterioError, OSError):
        return None


def open_geotiff(path: Path | str) -> Any:
    """Open a file for reading, without a warning where it has no georeference; raises RasterioError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a tile without a georeference is still a tile
        return rasterio.open(path)


def band_wavelengths(file: Any) -> list[float] | None:
    """Band centres in nm from the per-band tags, in file order; None where no band has one."""
    found, without = [], []
    for band in file.indexes:
        tags = file.tags(band)
        if "wavelength" in tags:
            unit = tags.get("wavelength_units", "Nanometers").lower()
            found.append(float(tags["wavelength"]) * (1000.0 if unit.startswith("micro") else 1.0))
        else:
            without.append(band)
    if found and without:
        raise TileError(f"band {without[0]} has no wavelength tag while others have one")
    return found or None


def as_int16(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """int16 with NODATA for missing pixels; floats are accepted where they hold whole numbers."""
    if values.dtype != np.int16 and values.dtype.kind != "f":
        raise TileError(f"dtype {values.dtype}: expected int16 digital numbers (or floats that hold whole numbers)")
    missing = np.zeros(values.shape, dtype=bool) if nodata is None else values == nodata
    if values.dtype.kind == "f":
        missing |= np.isnan(values)
        whole = np.where(missing, 0, values)
        if np.any(whole != np.rint(whole)) or whole.min() < NODATA or whole.max() > np.iinfo(np.int16).max:
            raise TileError(f"dtype {values.dtype} with fractions or beyond int16: expected reflectance x 10000")
        values = whole.astype(np.int16)
    if missing.any():
        values = np.where(missing, np.int16(NODATA), values)
    return np.ascontiguousarray(values)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
