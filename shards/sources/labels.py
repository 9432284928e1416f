"""Labels of an image's pixels: class codes on the image's grid, from rasters or polygons.

`pack --labels`, `verify --labels`, `finetune check` and fine-tuning all read labels through this module, so they all
accept the same labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rasterio._err import CPLE_BaseError  # rasterio.warp raises it for PROJ errors; it has no public name
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from shards.errors import TileError
from shards.sensors.sensor import NODATA
from shards.sources.alignment import Mismatch, covering_window, find_orientation, resample
from shards.sources.grid import Grid
from shards.sources.raster import Raster, open_raster

Align = Literal["nearest"]
RASTERS = (".tif", ".tiff", ".vrt", ".img", ".dat", ".bsq", ".bil", ".bip", ".png", ".jp2")
PIXELS = (1, 0, 0, 0, 1, 0)
"""The affine coefficients of a raster without a georeference."""

LARGEST_FLOAT = 3.4e38
"""Floats beyond this count as "no data": GDAL and ArcGIS write the end of float32's range, often undeclared."""


@dataclass(frozen=True)
class Labels:
    """The location of labels and options for reading them.

    Attributes:
        path: folder of label tiles with the names of the images, or one file for all: polygons or a raster.
        splits: folder of train.txt, val.txt and test.txt, or these files by name; None splits by location.
        align: ``nearest`` resamples labels on another grid to the image's; None rejects them.
        field: attribute of the polygons that holds the class.
        layer: layer to read from a file of polygons with several layers.
        names: code of each class name in lower case, for a text field.
        unnamed: code of all other names; None rejects them.
    """

    path: Path
    splits: Path | Mapping[str, Path] | None = None
    align: Align | None = None
    field: str | None = None
    layer: str | None = None
    names: Mapping[str, int] | None = None
    unnamed: int | None = None

    @property
    def one_file(self) -> bool:
        """Return whether one file holds the labels of all images."""
        return self.path.is_file() or self.is_vector

    @property
    def is_vector(self) -> bool:
        """Return whether labels are polygons (a geodatabase is a folder)."""
        if self.path.suffix.lower() == ".gdb":
            return True
        return self.path.is_file() and self.path.suffix.lower() not in RASTERS

    def read(self, name: str, grid: Grid) -> np.ndarray:
        """Read class codes on an image's grid, int64 (height, width); ``NODATA`` where there is no label.

        Args:
            name: path of the label tile relative to the folder; empty if one file holds all labels.

        Raises:
            TileError: the label is unreadable, has another place or grid, or holds no class codes.
            SourceError: the polygons lack this field or layer.
        """
        if self.is_vector:
            from shards.sources.vectors import burn, open_layer  # pyogrio and shapely are an extra

            return burn(open_layer(self.path, self.field, self.layer), grid, self.names or {}, self.unnamed)
        return read_label(self.path / name, grid, self.align)


def read_label(path: Path, grid: Grid | None = None, align: Align | None = None) -> np.ndarray:
    """Read a label raster: one band of class codes of any stored type, as int64 (height, width).

    Args:
        grid: the image's grid, to whose orientation the label is turned. None keeps the stored orientation.
        align: ``nearest`` resamples a label that is not on the image's pixels.

    Returns:
        Codes, ``NODATA`` where the file marks no data: by its nodata value, masks, alpha, or NaN.

    Raises:
        TileError: the label is unreadable, has several bands or non-integer values, or is not on the image's pixels.
    """
    with open_raster(path) as raster:
        try:
            return _read(raster, grid, align)
        except TileError as error:
            message = str(error)
            raise TileError(message if message.startswith(raster.name) else f"{raster.name}: {message}") from None
        except (RasterioError, CPLE_BaseError, OSError) as error:
            raise TileError(f"{raster.name}: not a readable raster ({str(error).splitlines()[0]})") from None


def read_grid(path: Path) -> Grid:
    """Read the pixel grid of an image from its header; raises TileError if it can't be read."""
    with open_raster(path) as raster:
        return raster.grid


def declared_nodata(path: Path) -> int | None:
    """Read the nodata value of a label raster if it is an integer, which could also be a class."""
    with open_raster(path) as raster:
        value = raster.file.nodata
    return int(value) if value is not None and np.isfinite(value) and value == int(value) else None


def make_grid(shape: tuple[int, ...], crs: str | None, transform: tuple[float, ...]) -> Grid:
    """Return the grid of a tile (..., height, width) from its stored georeference; the identity means none."""
    return Grid(shape[-2], shape[-1], crs, None if tuple(transform) == PIXELS else tuple(transform))


def as_stored(codes: np.ndarray, name: str) -> np.ndarray:
    """Convert codes to int16, as shards store them; raises TileError if one doesn't fit."""
    beyond = codes[(codes < NODATA) | (codes > np.iinfo(np.int16).max)]
    if len(beyond):
        raise TileError(
            f"{name}: label code {beyond[0]} doesn't fit int16: renumber it, or fine-tune without shards (data.labels)"
        )
    return codes.astype(np.int16)


def _read(raster: Raster, grid: Grid | None, align: Align | None) -> np.ndarray:
    _check_bands(raster)
    if grid is None:
        return _codes(raster)
    native = raster.grid
    try:
        return np.ascontiguousarray(find_orientation(native, grid).apply(_codes(raster)))
    except Mismatch as mismatch:
        if align is None or not mismatch.covers:
            raise
    window = Window.from_slices(*covering_window(native, grid))
    return resample(_codes(raster, window), native, grid, (window.row_off, window.col_off))


def _check_bands(raster: Raster) -> None:
    count = len(raster.bands)
    if {ColorInterp.red, ColorInterp.green, ColorInterp.blue} <= set(raster.file.colorinterp):
        raise TileError(f"{count} bands, an RGB picture of classes (or one-hot): give one band of class codes")
    if count != 1:
        raise TileError(f"{count} bands, one per class (one-hot): give one band of class codes")


def _codes(raster: Raster, window: Window | None = None) -> np.ndarray:
    """Read stored codes as int64, with `NODATA` where there is no label."""
    stored = raster.file.read(1, window=window)
    valid = raster.valid(window)
    missing = np.zeros(stored.shape, bool) if valid is None else ~valid
    if stored.dtype.kind == "f":
        missing |= np.isfinite(stored) & (np.abs(stored) >= LARGEST_FLOAT)
        wrong = ~missing & ((np.abs(stored) >= 2.0**63) | (stored != np.rint(stored)))
    elif stored.dtype == np.uint64:
        wrong = ~missing & (stored >= np.uint64(2**63))
    elif stored.dtype.kind in "iu":
        wrong = np.zeros((), bool)
    else:
        raise TileError(f"dtype {stored.dtype}: class codes are whole numbers")
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        raise TileError(f"value {stored[row, column]} at row {row}, column {column}: class codes are whole numbers")
    if not missing.any():
        return stored.astype(np.int64)
    codes = np.where(missing, stored.dtype.type(0), stored).astype(np.int64)
    codes[missing] = NODATA
    return codes
