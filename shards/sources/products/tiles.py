"""The tiles of a product: on the grid of its UTM zone, or cut from its upper left corner."""

import itertools
import math
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.windows import Window

from shards.errors import SourceError, TileError
from shards.format.table import QUALITY
from shards.sensors.sensor import NODATA, Sensor
from shards.sources.bundles import Bundle
from shards.sources.geotiff import IDENTITY, Tile
from shards.sources.grid import Grid
from shards.sources.image import SpectralImage, note_once
from shards.sources.limits import SceneLimits
from shards.sources.tile_names import SourceTile, location_of

if TYPE_CHECKING:
    from shards.sources.products.product import Product

CACHE_BYTES = 512 << 20
"""Size of GDAL's block cache: a row of 512x512x224 blocks, the largest in use, takes 350 MB. The default is 5 % of
memory for each worker: too little on small machines (8 times slower), too much on large ones.
"""

GRID_M, ORIGIN_M = 30.0, 15.0
"""Pixel edges of EnMAP L2A products lie at 15 m plus multiples of 30 m in every UTM zone seen so far. For a product
with other edges, cells take the nearest pixels, and the tile keeps its true transform.
"""

RIM = "px at the rims of scenes"
"""Reason for leaving out pixels that fill no complete tile."""


@dataclass
class ProductTiles(Bundle):
    """A `Bundle` of the tiles of one product.

    The cells of 30 m products in UTM are the zone's, not the scene's: cell (column, row) covers the same ground in
    every product of any such sensor, so that acquisitions of one place become timestamps of one location without
    resampling. Other products are cut from their upper left corner.

    Attributes:
        path: path of the product.
        name: path relative to the source.
        size: height and width of the tiles in pixels.
        limits: largest shares of flagged pixels; a limit applies if the product has the quality layer.
        filtered: number of tiles left out, by the first limit that they exceed.
        masked: quality layers whose flagged values become missing.
        source: class that opens the product.
    """

    kind = "product"

    path: Path
    name: str
    sensor: Sensor
    size: int
    limits: SceneLimits
    filtered: dict[str, int] = field(default_factory=dict)
    masked: tuple[str, ...] = ()
    source: "type[Product] | None" = None

    def fingerprint(self) -> str:
        status = self.path.stat()
        return f"{self.path.name} {status.st_size} {status.st_mtime_ns}"

    def open_image(self) -> AbstractContextManager[SpectralImage]:
        """Open the product's image; raises SourceError if it can't be read."""
        assert self.source is not None
        return self.source().open_image(self.path)

    def cells(self, image: SpectralImage) -> Iterator[tuple[str, Window]]:
        """Yield the name of the location and the window of each tile, from the northwest."""
        if is_on_zone_grid(image.grid):
            yield from zone_cells(image.grid, self.size)
            return
        grid, size, stem = image.grid, self.size, location_of(self.name)
        rows, columns = grid.height // size, grid.width // size
        rim = grid.height * grid.width - rows * columns * size * size
        if rim:
            self.filtered[RIM] = self.filtered.get(RIM, 0) + rim
        for row, column in itertools.product(range(rows), range(columns)):
            yield f"{stem}-{row}-{column}", Window(column * size, row * size, size, size)

    def tiles(self, skip: Container[str], scratch: Path | None = None) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        self.filtered.clear()
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), self.open_image() as image:
            image.mask(self.masked)
            bands = select_bands(image, self.sensor)
            self._note_limits(image)
            for location, window in self.cells(image):
                source = SourceTile(
                    location, image.time or "00000", f"{self.name}!{location}", image.scene or self.name, image.date
                )
                if source.key in skip:
                    continue
                tile = self._tile(image, window, bands, source)
                if tile is not None:
                    yield source, tile

    def _note_limits(self, image: SpectralImage) -> None:
        """Log which limits don't apply, since the product lacks their quality layer."""
        limits = (name for name, limit in self.limits if limit is not None and name != "nodata")
        lacking = [f"--max-{name.replace('_', '-')}" for name in limits if name not in image.quality]
        if lacking:
            kind = "the product" if self.source is None else self.source.__name__
            note_once(f"{kind}: no quality layer for {', '.join(lacking)}, so that limit leaves out no tile")

    def _tile(
        self, image: SpectralImage, window: Window, bands: list[int], source: SourceTile
    ) -> Tile | TileError | None:
        """Read one cell; None if it exceeds a limit."""
        layers = {name: image.quality[name](bands, window) for name in QUALITY if name in image.quality}
        quality = {name: float(np.mean(layer.any(0))) for name, layer in layers.items()}
        if self._is_over(quality):
            return None
        try:
            values = image.read(bands, window)
        except TileError as error:
            return TileError(f"{source.path}: {str(error).removeprefix(f'{image.name}: ')}")
        good = dict(zip(image.bands, image.good, strict=True))
        missing = values[[good[band] for band in bands]] == NODATA
        if self._is_over({"nodata": float(np.mean(missing.any(0)))}):
            return None
        crs = image.grid.crs if image.grid.transform is not None else None  # control points place no tile
        return Tile(values, crs, moved(image.grid.transform, window), image.date, quality)

    def _is_over(self, shares: dict[str, float]) -> bool:
        for name, share in shares.items():
            limit = getattr(self.limits, name)
            if limit is not None and share > limit:
                self.filtered[name] = self.filtered.get(name, 0) + 1
                return True
        return False


def select_bands(image: SpectralImage, sensor: Sensor) -> list[int]:
    """Return the numbers of the sensor's bands in a product; raises SourceError if any are missing."""
    try:
        return image.select(sensor)
    except TileError as error:
        raise SourceError(str(error)) from None


def moved(transform: tuple[float, ...] | None, window: Window) -> tuple[float, ...]:
    """Return the transform of a window."""
    if transform is None:
        return IDENTITY
    a, b, c, d, e, f = transform
    column, row = window.col_off, window.row_off
    return a, b, a * column + b * row + c, d, e, d * column + e * row + f


def is_on_zone_grid(grid: Grid) -> bool:
    """Return whether an image is north-up in a projection with an EPSG code, with pixels of 30 m."""
    if grid.transform is None or grid.crs is None or CRS.from_user_input(grid.crs).to_epsg() is None:
        return False
    a, b, _, d, e, _ = grid.transform
    return (a, b, d, e) == (GRID_M, 0.0, 0.0, -GRID_M)


def zone_cells(grid: Grid, size: int) -> Iterator[tuple[str, Window]]:
    """Yield the cells of the zone's grid that lie entirely within an image, from the northwest: (location, window).

    Cell (column, row) starts ``column * size`` pixels east and ``row * size`` pixels north of the grid's origin.
    """
    assert grid.transform is not None
    epsg = CRS.from_user_input(grid.crs).to_epsg()
    # always round halves up: round() would move two products that are half a pixel off to different pixels
    left, top = (math.floor((edge - ORIGIN_M) / GRID_M + 0.5) for edge in (grid.transform[2], grid.transform[5]))
    first_column, last_column = math.ceil(left / size), (left + grid.width) // size
    first_row, last_row = math.ceil((top - grid.height) / size), top // size
    for row in reversed(range(first_row, last_row)):
        for column in range(first_column, last_column):
            window = Window(column * size - left, top - (row + 1) * size, size, size)
            yield f"{epsg}-{column}-{row}", window
