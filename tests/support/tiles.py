"""Realistic tile files, written by GDAL: every dtype, interleave, nodata value and set of tags."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

NODATA = -32768
BANDS = 202
GRID = Affine(30.0, 0.0, 366015.0, 0.0, -30.0, 5809965.0)
ARCHIVE = {
    "0000017": ("00003", "05120"),
    "0000231": ("00003",),
    "0004096": ("00812", "02207", "07676"),
    "0004097": ("00812",),
    "0150003": ("04411",),
    "0287155": ("07676", "09001"),
}
"""Locations and their timestamps: ten tiles."""


def spectra(seed: int, size: int, bands: int = BANDS) -> np.ndarray:
    """Return int16 (bands, size, size): smooth spectra with negative, zero, saturated and missing pixels."""
    rng = np.random.default_rng(seed)
    shape = 2000 + 1500 * np.sin(np.linspace(0, 6, bands))[:, None, None]
    values = np.rint(shape + rng.normal(0, 900, (bands, size, size))).astype(np.int16)
    values[:, 0, 0] = NODATA
    values[:, 0, 1] = 0
    values[::7, 1, 0] = 32767
    values[3 % bands, 1, 1] = NODATA
    values[5 % bands, -1, -1] = -32767
    return values


def write_tile(
    path: Path,
    values: np.ndarray,
    nodata: float | None = None,
    wavelengths: Sequence[float | str | None] | None = None,
    units: str | None = "Nanometers",
    interleave: str = "pixel",
    georeferenced: bool = True,
) -> Path:
    """Write (bands, height, width), or a label tile (height, width), with the dtype of ``values``.

    ``wavelengths`` become per-band tags; None among them leaves that band without one.
    """
    bands = values if values.ndim == 3 else values[None]
    place = {"crs": "EPSG:32633", "transform": GRID} if georeferenced else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=bands.shape[0],
            height=bands.shape[1],
            width=bands.shape[2],
            dtype=bands.dtype,
            nodata=nodata,
            interleave=interleave,
            **place,
        ) as file:
            file.write(bands)
            for band, wavelength in enumerate(wavelengths or (), start=1):
                if wavelength is not None:
                    tags = {"wavelength": str(wavelength)} | ({"wavelength_units": units} if units else {})
                    file.update_tags(band, **tags)
    return path


def write_archive(
    folder: Path, size: int = 8, scenes: Mapping[str, Sequence[str]] = ARCHIVE, sensor: str = "enmap"
) -> dict[str, np.ndarray]:
    """Write tiles as ``<sensor>/<location>/<timestamp>.tif``; return the values by sample key."""
    values = {}
    for location, timestamps in scenes.items():
        for timestamp in timestamps:
            tile = spectra(int(location) + int(timestamp), size)
            write_tile(folder / sensor / location / f"{timestamp}.tif", tile, nodata=NODATA)
            values[f"{location}_{timestamp}"] = tile
    return values


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a flat folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def archive_names(prefix: str) -> list[str]:
    """Return the paths of the tiles of ``ARCHIVE`` below a prefix."""
    return [f"{prefix}{location}/{scene}.tif" for location, scenes in ARCHIVE.items() for scene in scenes]
