"""Pixel grids: the location of a raster's pixels on the ground."""

import math
from dataclasses import dataclass

import numpy as np
from rasterio._err import CPLE_BaseError  # rasterio.warp raises it for PROJ errors; it has no public name
from rasterio.errors import CRSError
from rasterio.warp import transform as transform_points

FARTHEST = 1e9
"""Larger than any coordinate on Earth in meters or feet. PROJ reduces longitudes turn by turn: 1e300 hangs it."""


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

    def center_lonlat(self) -> tuple[float, float]:
        """Longitude and latitude of the center in degrees (WGS 84); NaN without a georeference, or with one
        that leads nowhere on Earth (a local grid, coordinates beyond the projection): no reason to lose the tile.
        """
        center = self.center()
        if self.crs is None or center is None or not sum(map(abs, center)) < FARTHEST:  # NaN too
            return math.nan, math.nan
        try:
            (lon,), (lat,) = transform_points(self.crs, "EPSG:4326", [center[0]], [center[1]])
        except (CPLE_BaseError, CRSError):
            return math.nan, math.nan
        return (float(lon), float(lat)) if math.isfinite(lon) and math.isfinite(lat) else (math.nan, math.nan)

    def coarsened(self, cell: int) -> "Grid":
        """Return the grid of squares of ``cell`` pixels from the upper left corner; the last may exceed the raster."""
        coarse = None
        if self.transform is not None:
            a, b, c, d, e, f = self.transform
            coarse = (a * cell, b * cell, c, d * cell, e * cell, f)
        return Grid(-(-self.height // cell), -(-self.width // cell), self.crs, coarse)
