"""Opening of a scene in any form: a product in its native files, or a raster that GDAL reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shards.sources.image import SpectralImage
from shards.sources.products.product import find_product
from shards.sources.raster import open_raster


@contextmanager
def open_image(location: Path | str, masked: Sequence[str] = ()) -> Iterator[SpectralImage]:
    """Open a product (EnMAP, PRISMA, ... or one of a plugin), or a raster in any format that GDAL reads.

    Args:
        location: path of a file, folder or zip file, a URL, or a name within an archive (``/vsizip/...``).
        masked: quality layers of a product whose flagged values are read as missing.

    Raises:
        SourceError: the product is damaged, or has no such quality layer.
        TileError: the file is missing or is neither a product nor a raster.
    """
    kind = None if is_remote(str(location)) else find_product(Path(location))
    with open_raster(location) if kind is None else kind.open_image(Path(location)) as image:
        image.mask(masked)
        yield image


def is_remote(location: str) -> bool:
    """Return whether a location is not a local file with an ordinary path."""
    return "://" in location or location.startswith("/vsi")
