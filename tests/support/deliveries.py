"""Deliveries of small tiles: tars with links and repeated names, and mosaics in ENVI's format and others."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from support.tiles import GRID, NODATA, spectra

SIZE = 4


def pixels(letter: str) -> np.ndarray:
    """Return the values of the tile of a letter, int16 (bands, SIZE, SIZE)."""
    return spectra("abc".index(letter), SIZE)


def write_tar(path: Path, members: Sequence[tuple], mode: str = "w") -> Path:
    """Write a tar of ``members``: (name, bytes), or (name, type, target)."""
    with tarfile.open(path, mode) as tar:
        for name, *what in members:
            info = tarfile.TarInfo(name)
            if len(what) == 2:
                info.type, info.linkname = what
                tar.addfile(info)
            else:
                info.size = len(what[0])
                tar.addfile(info, io.BytesIO(what[0]))
    return path


def write_envi(path: Path, values: np.ndarray, driver: str = "ENVI", **options: object) -> Path:
    """Write (bands, height, width) by a driver of GDAL; ``options`` replace what the file says of itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"crs": "EPSG:32633", "transform": GRID, "dtype": values.dtype, "count": len(values), "nodata": NODATA}
    height, width = values.shape[1:]
    with rasterio.open(path, "w", driver=driver, height=height, width=width, **(told | options)) as file:
        file.write(values)
    return path


def touch(folder: Path, *names: str) -> None:
    """Create empty files and the folders above them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
