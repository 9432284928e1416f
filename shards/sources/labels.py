"""What a label says of an image's pixels: class codes on the image's grid, whatever the label is stored as.

`pack --labels`, `verify --labels`, `finetune check` and fine-tuning read labels here and nowhere else, so that what one
of them accepts is what the others see.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rasterio._err import CPLE_BaseError  # what rasterio.warp passes on from PROJ; it has no public name
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from shards.errors import TileError
from shards.sensors.sensor import NODATA
from shards.sources.alignment import Mismatch, covering_window, find_turn, resample
from shards.sources.grid import Grid
from shards.sources.raster import Raster, open_raster

Align = Literal["nearest"]
RASTERS = (".tif", ".tiff", ".vrt", ".img", ".dat", ".bsq", ".bil", ".bip", ".png", ".jp2")
PIXELS = (1, 0, 0, 0, 1, 0)
"""The affine coefficients of a raster without a georeference."""

LARGEST_FLOAT = 3.4e38
"""Floats at the end of float32's range are what GDAL and ArcGIS write for "no data", often without saying so."""


@dataclass(frozen=True)
class Labels:
    """Where labels come from and how they are read.

    Attributes:
        path: folder of label tiles with the names of the images; or one file for all: polygons, or a raster.
        splits: folder of train.txt, val.txt and test.txt, or these files by name; None splits by location.
        align: ``nearest`` brings labels of another grid to the image's; None refuses them.
        field: of the polygons' attribute that holds the class.
        layer: of a file of polygons that has several.
        names: codes of class names in lower case, for a field of text.
        unnamed: code of names that are not among them; None refuses them.
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
        """Whether one file holds the labels of all images."""
        return self.path.is_file() or self.is_vector

    @property
    def is_vector(self) -> bool:
        """Whether labels are polygons (a geodatabase is a folder)."""
        if self.path.suffix.lower() == ".gdb":
            return True
        return self.path.is_file() and self.path.suffix.lower() not in RASTERS

    def read(self, name: str, grid: Grid) -> np.ndarray:
        """Codes on an image's grid, int64 (height, width); ``NODATA`` where the label doesn't count.

        Args:
            name: of the label tile, relative to the folder; empty where one file has all.

        Raises:
            TileError: unreadable, of another place or grid, or no class codes.
            SourceError: polygons without this field or layer.
        """
        if self.is_vector:
            from shards.sources.vectors import burn, open_layer  # pyogrio and shapely are an extra

            return burn(open_layer(self.path, self.field, self.layer), grid, self.names or {}, self.unnamed)
        return read_label(self.path / name, grid, self.align)


def read_label(path: Path, grid: Grid | None = None, align: Align | None = None) -> np.ndarray:
    """Read a label raster: one band of class codes of any stored type, as int64 (height, width).

    Args:
        grid: of the image; the label is turned to its orientation. None takes the label as it is stored.
        align: ``nearest`` resamples a label whose pixels are not the image's.

    Returns:
        Codes, ``NODATA`` where the file says that there is no label: its nodata value, masks, alpha, NaN.

    Raises:
        TileError: unreadable, several bands, no whole numbers, or not the image's pixels; one line.
    """
    with open_raster(path) as raster:
        try:
            return _read(raster, grid, align)
        except TileError as error:
            told = str(error)
            raise TileError(told if told.startswith(raster.name) else f"{raster.name}: {told}") from None
        except (RasterioError, CPLE_BaseError, OSError) as error:
            raise TileError(f"{raster.name}: not a readable raster ({str(error).splitlines()[0]})") from None


def read_grid(path: Path) -> Grid:
    """The pixel grid of an image, from its header; raises TileError where it can't be read."""
    with open_raster(path) as raster:
        return raster.grid


def declared_nodata(path: Path) -> int | None:
    """The nodata value of a label raster where it is a whole number, which could be a class as well."""
    with open_raster(path) as raster:
        value = raster.file.nodata
    return int(value) if value is not None and np.isfinite(value) and value == int(value) else None


def make_grid(shape: tuple[int, ...], crs: str | None, transform: tuple[float, ...]) -> Grid:
    """The grid of a tile (..., height, width) with what is stored of its place: the identity is none."""
    return Grid(shape[-2], shape[-1], crs, None if tuple(transform) == PIXELS else tuple(transform))


def as_stored(codes: np.ndarray, name: str) -> np.ndarray:
    """Codes as shards have them, int16; raises TileError where one doesn't fit."""
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
    own = raster.grid
    try:
        return np.ascontiguousarray(find_turn(own, grid).apply(_codes(raster)))
    except Mismatch as mismatch:
        if align is None or not mismatch.covers:
            raise
    window = Window.from_slices(*covering_window(own, grid))
    return resample(_codes(raster, window), own, grid, (window.row_off, window.col_off))


def _check_bands(raster: Raster) -> None:
    count = len(raster.bands)
    if {ColorInterp.red, ColorInterp.green, ColorInterp.blue} <= set(raster.file.colorinterp):
        raise TileError(f"{count} bands, an RGB picture of classes (or one-hot): give one band of class codes")
    if count != 1:
        raise TileError(f"{count} bands, one for each class (one-hot): give one band of class codes")


def _codes(raster: Raster, window: Window | None = None) -> np.ndarray:
    """Codes as stored, int64, with `NODATA` where there is no label."""
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
        row, column = (int(one) for one in np.argwhere(wrong)[0])
        raise TileError(f"value {stored[row, column]} at row {row}, column {column}: class codes are whole numbers")
    if not missing.any():
        return stored.astype(np.int64)
    codes = np.where(missing, stored.dtype.type(0), stored).astype(np.int64)
    codes[missing] = NODATA
    return codes
