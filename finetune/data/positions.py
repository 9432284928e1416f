"""Where tiles lie on Earth, and how far test tiles are from the nearest training tile."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from finetune.data.items import Item
from shards.errors import TileError
from shards.sources.labels import read_grid

EARTH_RADIUS_KM = 6371.0
AT_ONCE = 1024
"""Number of tiles that are compared with all training tiles at a time."""


def lonlats(items: Sequence[Item], threads: int) -> np.ndarray:
    """Return longitude and latitude of the center of each tile in degrees, float64 (n, 2); NaN where unknown."""
    with ThreadPoolExecutor(threads) as pool:
        return np.array(list(pool.map(_lonlat, items)), np.float64).reshape(-1, 2)


def nearest_km(tiles: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the great-circle distance of each tile to the nearest of the others in km, float64 (n,); NaN where a
    position is unknown.

    Args:
        tiles, others: longitudes and latitudes in degrees (n, 2).
    """
    points = _on_sphere(others[np.isfinite(others).all(1)])
    if not len(points):
        return np.full(len(tiles), np.nan)
    parts = [_on_sphere(tiles[begin : begin + AT_ONCE]) @ points.T for begin in range(0, len(tiles), AT_ONCE)]
    nearest = np.concatenate([part.max(1) for part in parts])
    return EARTH_RADIUS_KM * np.arccos(np.clip(nearest, -1, 1))


def _lonlat(item: Item) -> tuple[float, float]:
    try:
        return read_grid(item.file).center_lonlat() if item.file is not None else item.lonlat
    except TileError:  # not a raster
        return np.nan, np.nan


def _on_sphere(lonlat: np.ndarray) -> np.ndarray:
    """Return points on the unit sphere (n, 3)."""
    lon, lat = np.radians(lonlat).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
