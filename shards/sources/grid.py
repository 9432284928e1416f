"""Pixel grids: the location of a raster's pixels on the ground."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """The pixel grid of a raster.

    Attributes:
        height, width: in pixels.
        crs: coordinate reference system as text (``"EPSG:32633"``), or None.
        transform: the six affine coefficients from (column, row) to CRS units, in rasterio's order, or None if the
            raster has no georeference.
    """

    height: int
    width: int
    crs: str | None = None
    transform: tuple[float, ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def pixel_size(self) -> tuple[float, float] | None:
        """The length of one pixel along a row and along a column, in CRS units."""
        if self.transform is None:
            return None
        a, b, _, d, e, _ = self.transform
        return float(np.hypot(a, d)), float(np.hypot(b, e))

    def center(self) -> tuple[float, float] | None:
        """The center (x, y) in CRS units."""
        if self.transform is None:
            return None
        a, b, c, d, e, f = self.transform
        column, row = self.width / 2, self.height / 2
        return a * column + b * row + c, d * column + e * row + f

    def coarsened(self, cell: int) -> "Grid":
        """Return the grid of squares of ``cell`` pixels from the upper left corner; the last may exceed the raster."""
        coarse = None
        if self.transform is not None:
            a, b, c, d, e, f = self.transform
            coarse = (a * cell, b * cell, c, d * cell, e * cell, f)
        return Grid(-(-self.height // cell), -(-self.width // cell), self.crs, coarse)
