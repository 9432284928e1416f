"""A complete scene, read by rows: a product, or any raster."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from shards.errors import SourceError, TileError
from shards.sources.grid import Grid
from shards.sources.image import SpectralImage
from shards.sources.images import is_remote, open_image
from shards.sources.products.product import find_product
from shards.sources.products.tiles import CACHE_BYTES


@dataclass(frozen=True)
class SceneImage:
    """An open scene.

    Attributes:
        raster: the spectral image.
        bands: one-based indices of the bands to read.
    """

    raster: SpectralImage
    bands: list[int]

    @property
    def grid(self) -> Grid:
        return self.raster.grid

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Read rows ``begin`` to ``end`` as int16 (bands, end - begin, width), NODATA for missing values.

        Raises:
            SourceError: the file is damaged there, or does not hold digital numbers.
        """
        try:
            return self.raster.read(self.bands, Window(0, begin, self.grid.width, end - begin))
        except TileError as error:
            raise SourceError(f"{error} (rows {begin} to {end})") from None


@contextmanager
def open_scene(scene: str | Path, masked: Sequence[str] = ()) -> Iterator[SpectralImage]:
    """Open a product (folder, zip file, or one of its files) or a raster.

    Args:
        scene: path, URL, or path inside an archive (``/vsizip/...``).
        masked: quality layers of the product whose flagged values are missing.

    Raises:
        SourceError: the scene is missing, is not a raster, or lacks a quality layer.
    """
    _check_exists(scene)
    # Each row of windows rereads the blocks of a row of the file: the cache must hold one row of blocks.
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), ExitStack() as stack:
        try:
            raster = stack.enter_context(open_image(scene, masked))
        except TileError as error:
            raise SourceError(str(error)) from None
        yield raster


def _check_exists(scene: str | Path) -> None:
    """Raise SourceError for a local scene that is missing, or a folder that is no product."""
    path = Path(scene)
    if is_remote(str(scene)):
        return
    if not path.exists():
        raise SourceError(f"{path}: no such scene")
    if path.is_dir() and find_product(path) is None:
        raise SourceError(f"{path}: no product of a sensor that is known (docs/inputs.md): name a raster in it")
