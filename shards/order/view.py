"""Views: subsets of the tiles of a dataset, selected at read time by region, date, quality or scene."""

import hashlib
import json
from pathlib import Path

import numpy as np

from shards.errors import ConfigError
from shards.files.text import decode_text
from shards.order.selection import ViewConfig


def view_rows(view: ViewConfig, table: np.ndarray) -> np.ndarray:
    """Return the rows of the tile table that meet the conditions, int64, ascending.

    Raises:
        ConfigError: if a list can't be read or names nothing in the dataset.
    """
    passed = np.ones(len(table), dtype=bool)
    if view.bbox is not None:
        passed &= _inside(table["lon"], table["lat"], view.bbox)
    if view.begin is not None:
        passed &= table["date"] >= np.datetime64(view.begin)  # False for NaT
    if view.end is not None:
        passed &= table["date"] <= np.datetime64(view.end)
    if view.max_cloud is not None:
        passed &= table["cloud"] <= view.max_cloud  # False for NaN
    if view.max_nodata is not None:
        passed &= table["nodata"] <= view.max_nodata
    if view.split is not None:
        passed &= table["split"] == view.split.encode()
    if view.keep is not None:
        passed &= _named(table, Path(view.keep), "keep")
    if view.deny is not None:
        passed &= ~_named(table, Path(view.deny), "deny")
    return np.flatnonzero(passed)


def view_hash(content_hash: str, rows: np.ndarray, tiles: int) -> str:
    """Return the hash of a view: the content hash itself if no tile is left out, so that orders stay the same."""
    if len(rows) == tiles:
        return content_hash
    digest = hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()
    return hashlib.sha256(json.dumps([content_hash, digest]).encode()).hexdigest()


def _inside(lon: np.ndarray, lat: np.ndarray, bbox: tuple[float, float, float, float]) -> np.ndarray:
    west, south, east, north = bbox
    within = (lon >= west) & (lon <= east) if west <= east else (lon >= west) | (lon <= east)
    return within & (lat >= south) & (lat <= north)


def _named(table: np.ndarray, path: Path, key: str) -> np.ndarray:
    """Return whether each tile's scene, location or key is in the list, bool (len(table),)."""
    try:
        lines = decode_text(path.read_bytes()).splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"key 'view.{key}': {path}: can't be read ({error})") from None
    names = [name.encode() for line in lines if (name := line.split("#")[0].strip())]
    matches = np.zeros(len(table), dtype=bool)
    for column in ("scene", "location", "key"):
        matches |= np.isin(table[column], np.asarray(names, dtype="S"))
    if names and not matches.any():
        raise ConfigError(f"key 'view.{key}': none of the {len(names)} names in {path} is in the dataset")
    return matches
