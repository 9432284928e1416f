"""Geometry lookup tables (GLT): the pixel of a swath for each cell of a map grid."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.windows import Window

from shards.errors import SourceError
from shards.sources.grid import Grid
from shards.sources.products.hdf import dataset, numbers, text

if TYPE_CHECKING:
    import h5py

Read = Callable[[slice, slice], np.ndarray]
"""Function of rows and columns of the swath that returns (bands, height, width)."""


SQUARE = 64
"""Smallest side in pixels of the squares in which a window is read."""


@dataclass(frozen=True)
class LookupTable:
    """The lookup table of a map grid.

    Attributes:
        grid: the map grid.
        row, column: int32 of the grid's shape, 0-based pixel of the swath in each cell, -1 where there is none.
    """

    grid: Grid
    row: np.ndarray
    column: np.ndarray

    @classmethod
    def read(cls, file: "h5py.File", path: Path, shape: tuple[int, int]) -> Self | None:
        """Read ``location/glt_x`` and ``glt_y`` with the attributes ``geotransform`` and ``spatial_ref``.

        Args:
            shape: height and width of the swath.

        Returns:
            The table, or None if the file has none.

        Raises:
            SourceError: the table names a pixel beyond the swath, or the file doesn't say where its grid is.
        """
        if "location/glt_x" not in file:
            return None
        column, row = (
            np.nan_to_num(dataset(file, f"location/{name}", path, 2)[()]).astype(np.int32) - 1
            for name in ("glt_x", "glt_y")
        )
        if column.shape != row.shape:
            raise SourceError(f"{path}: glt_x and glt_y have other shapes: download it again")
        for name, pixels, count in (("glt_y", row, shape[0]), ("glt_x", column, shape[1])):
            if pixels.min() < -1 or pixels.max() >= count:
                worst = int(pixels.max() if pixels.max() >= count else pixels.min()) + 1
                raise SourceError(
                    f"{path}: {name} names pixel {worst}, but the swath has {count}: the file is damaged or its lookup "
                    "table is that of another scene; download it again"
                )
        transform = numbers(file.attrs.get("geotransform"), "geotransform", path).ravel()
        if len(transform) != 6 or not np.isfinite(transform).all():
            raise SourceError(f"{path}: geotransform has {len(transform)} numbers, expected 6: download it again")
        try:
            crs = CRS.from_user_input(text(file.attrs.get("spatial_ref")) or "EPSG:4326").to_string()
        except CRSError as error:
            raise SourceError(f"{path}: spatial_ref is no coordinate reference system ({error})") from None
        c, a, b, f, d, e = transform.tolist()  # GDAL's order
        return cls(Grid(row.shape[0], row.shape[1], crs, (a, b, c, d, e, f)), row, column)

    def gather(self, read: Read, window: Window, out: np.ndarray) -> None:
        """Copy the values of the grid's cells in a window by nearest neighbor; cells without a pixel keep theirs.

        The window is read in squares, since a full row of the grid crosses most rows of a rotated swath.

        Args:
            read: function that reads a block of the swath.
            out: (bands, height, width) of the window.
        """
        rows, columns = window.toslices()
        step = max(SQUARE, rows.stop - rows.start)
        for left in range(columns.start, columns.stop, step):
            right = min(left + step, columns.stop)
            row, column = self.row[rows, left:right], self.column[rows, left:right]
            inside = (row >= 0) & (column >= 0)
            if inside.any():
                row, column = row[inside], column[inside]
                top, first = row.min(), column.min()
                block = read(slice(top, row.max() + 1), slice(first, column.max() + 1))
                square = out[:, :, left - columns.start : right - columns.start]
                square[:, inside] = block[:, row - top, column - first]
