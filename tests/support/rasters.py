"""Rasters of EnMAP's bands that say something of themselves, and what is read from them."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from shards.sensors.sensor import Sensor, get_sensor
from shards.sources.geotiff import read_tile

ENMAP = get_sensor("enmap")
PRODUCT_NM = np.asarray(ENMAP.product_wavelength_nm)
PLACE = from_origin(300015, 5800005, 30, 30)
DETECTORS = [*range(0, 91, 2), *range(91, 224), *range(1, 91, 2)]
"""An order of the product's bands that is not the one of wavelength."""


def cube(bands: int = 202, size: int = 8) -> np.ndarray:
    """Return int16 (bands, size, size), another level in every band."""
    levels = 100 * np.arange(1, bands + 1)[:, None, None] % 9000
    return (levels + np.arange(size * size).reshape(size, size)).astype(np.int16)


def write(path: Path, values: np.ndarray, **options: object) -> Path:
    """Write (bands, height, width); ``options`` change the profile, and None leaves an entry out."""
    bands, height, width = values.shape
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": PLACE} | options
    profile = {name: value for name, value in profile.items() if value is not None}
    with rasterio.open(path, "w", count=bands, height=height, width=width, dtype=values.dtype, **profile) as file:
        file.write(values)
    return path


def values_of(path: Path, sensor: Sensor = ENMAP) -> np.ndarray:
    """Return the digital numbers of a tile file."""
    return read_tile(path, sensor).values
