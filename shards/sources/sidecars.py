"""Files beside a raster that belong to it: ``.aux.xml``, world files, ``.msk``, ENVI's ``.hdr``.

GDAL reads all of them, but probes every name that a sidecar could have; one listing of the folder replaces that.
"""

import os
import time
from functools import lru_cache
from pathlib import Path

LONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
"""GDAL options for a file without sidecars: neither list the folder nor look for sidecars."""

ACCOMPANIED = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}
"""GDAL options for a file with sidecars or a remote file: look for the known names without listing the folder."""

SIDECARS = (
    ".aux.xml",
    ".aux",
    ".msk",
    ".hdr",
    ".tfw",
    ".tifw",
    ".tiffw",
    ".tfwx",
    ".wld",
    ".prj",
    ".tab",
    ".imd",
    ".rpb",
)
"""Suffixes of GDAL's sidecar files, appended to a raster's name or in place of its extension."""

FRESH_S = 2.0
"""A folder that changed within this time is listed again: some file systems have timestamps this coarse."""


def gdal_options(name: str) -> dict[str, str]:
    """Return GDAL's options for opening a file: whether to look for sidecars."""
    if name.startswith("/vsimem/"):
        return LONE
    if "://" in name or name.startswith("/vsi"):
        return ACCOMPANIED
    folder, base = os.path.split(name)
    return ACCOMPANIED if _has_sidecar(folder or ".", base.lower()) else LONE


def header_beside(name: str) -> Path | None:
    """Return the ENVI header of a file in another format, or None: some programs write one beside a GeoTIFF."""
    paths = (Path(f"{name}.hdr"), Path(name).with_suffix(".hdr")) if "://" not in name else ()
    return next((path for path in paths if path.is_file()), None)


def _has_sidecar(folder: str, name: str) -> bool:
    """Return whether a file has sidecars that GDAL reads; takes one listing of the folder."""
    try:
        changed = os.stat(folder).st_mtime_ns
        fresh = time.time_ns() - changed < FRESH_S * 1e9
        accompanied = (_accompanied.__wrapped__ if fresh else _accompanied)(folder, changed)
    except OSError:
        return False
    return name in accompanied or name.rpartition(".")[0] in accompanied


@lru_cache(maxsize=16)
def _accompanied(folder: str, changed: int) -> frozenset[str]:
    """Return lowercase names, with or without extension, that have a sidecar; ``changed`` is the folder's mtime."""
    names = [entry.name.lower() for entry in os.scandir(folder)]
    return frozenset(name.removesuffix(ending) for name in names for ending in SIDECARS if name.endswith(ending))
