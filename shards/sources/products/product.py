"""The interface of products: files that hold one image with its wavelengths, quality layers and georeference.

Products are tile sources (shards/sources/bundles.py) that can also open their image, for `predict` and
`spectralforge.open_raster`. A plugin that registers one in ``TILE_SOURCES`` makes all of them read its files.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from shards.errors import SourceError
from shards.sources.bundles import Bundle, TileOptions, TileSource, tile_sources
from shards.sources.image import SpectralImage
from shards.sources.products.tiles import ProductTiles


class Product(TileSource):
    """A kind of file that holds one image.

    A file is claimed by its name, since a scan lists millions of them; a claimed file is a product if its content says
    so (`recognizes`).
    """

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Return whether the content of a file, folder or zip file is a product of this kind.

        Raises:
            SourceError: the file has the signature of this kind, but is truncated or damaged.
        """

    @abstractmethod
    def open_image(self, path: Path) -> AbstractContextManager[SpectralImage]:
        """Open the image of a product that `recognizes` accepts.

        Raises:
            SourceError: the product is damaged, incomplete, or holds no reflectance.
        """

    def open(self, path: Path, name: str, options: TileOptions) -> list[Bundle]:
        """Return the product as a bundle; an empty list if its content is not of this kind."""
        if not self.recognizes(path):
            return []
        sensor, size, limits, masked = options.sensor, options.size, options.limits, options.masked
        return [ProductTiles(path, name, sensor, size, limits, masked=masked, source=type(self))]


def find_product(path: Path) -> Product | None:
    """Return the kind of the product in a file, folder or zip file; None if it is none.

    Raises:
        SourceError: the file is a damaged product.
    """
    return next((kind for kind in known_products() if kind.recognizes(path)), None)


def known_products() -> Iterator[Product]:
    """Yield the kinds of products in the order in which they are tried."""
    for _, kind in tile_sources():
        if isinstance(kind, Product):
            yield kind


def missing_wavelengths(where: str) -> SourceError:
    """Return the error for a product without wavelengths."""
    return SourceError(f"{where}: gives no wavelengths: download it again, or order it with its metadata")
