"""EnMAP L2A products: METADATA.XML, SPECTRAL_IMAGE and quality layers, in a folder or zip file.

Tiles are cut on a grid of the UTM zone (shards/sources/products/tiles.py). Quality layers become shares of a tile's
pixels; limits on them decide which tiles are kept.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rasterio.errors import RasterioError
from rasterio.windows import Window

from shards.errors import SourceError
from shards.sensors.sensor import get_sensor
from shards.sources.bundles import Bundle, TileOptions
from shards.sources.containers import Container
from shards.sources.enmap_quality import (
    BITS,
    CLASSES,
    DEFECTIVE,
    PIXEL_MASK,
    TEST_FLAGS,
    class_flags,
    defective_flags,
    detector_flags,
)
from shards.sources.image import Flags, SpectralImage
from shards.sources.limits import NO_LIMITS
from shards.sources.product import (
    METADATA,
    Metadata,
    is_metadata,
    is_product,
    metadata_names,
    product_name,
    product_stem,
)
from shards.sources.products.product import Product
from shards.sources.products.tiles import GRID_M, ProductTiles, is_on_zone_grid
from shards.sources.raster import Raster

RASTERS = r"(_COG)?\.(tiff?|bsq|bil|bip|dat|img)"
"""Extensions of a product's rasters: products can be ordered as GeoTIFF or in ENVI's interleaves."""

IMAGE = "-SPECTRAL_IMAGE"


@dataclass
class Scene(ProductTiles):
    """A `Bundle` of the tiles of one product.

    Attributes:
        path: path of the product's folder or zip file.
        metadata_name: name of the METADATA.XML within ``path``; None if there is only one.
    """

    metadata_name: str | None = None

    @property
    def product(self) -> str:  # type: ignore[override]
        return product_stem(self.metadata_name) if self.metadata_name else ""

    def fingerprint(self) -> str:
        files = [self.path]
        if self.path.is_dir():
            stem = self._metadata_name()[: -len(METADATA)]
            files = sorted(file for file in self.path.iterdir() if file.name.startswith(stem))
        return ", ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)

    @contextmanager
    def open_image(self) -> Iterator[SpectralImage]:
        """Open the spectral image with the quality layers.

        Raises:
            SourceError: a file is missing or unreadable, or a quality layer that a limit or mask needs.
        """
        metadata_name = self._metadata_name()
        metadata = Metadata.parse(Container(self.path).read(metadata_name), f"{self.path}/{metadata_name}")
        with ExitStack() as stack:
            opened = self._open(IMAGE[1:], metadata_name, metadata.wavelength_nm, metadata.background)
            image = stack.enter_context(opened)
            if len(metadata.wavelength_nm) != len(image.bands):
                raise SourceError(
                    f"{image.name}: {len(image.bands)} bands, but METADATA.XML lists {len(metadata.wavelength_nm)}"
                )
            image.describe(metadata.wavelength_nm, metadata.fwhm_nm)
            image.time, image.scene = metadata.time, product_stem(metadata_name)
            image.quality = self._quality(metadata_name, image, stack)
            yield image

    def cells(self, image: SpectralImage) -> Iterator[tuple[str, Window]]:
        if not is_on_zone_grid(image.grid):
            raise SourceError(
                f"{image.name}: expected a north-up UTM image of {GRID_M:g} m pixels, got {image.grid.transform}"
            )
        return super().cells(image)

    def _metadata_name(self) -> str:
        names = [self.metadata_name] if self.metadata_name else metadata_names(self.path)
        if not names:
            raise SourceError(f"{self.path}: no longer a product: its METADATA.XML is missing")
        return names[0]

    def _quality(self, metadata_name: str, image: Raster, stack: ExitStack) -> dict[str, Flags]:
        """Read the quality layers; a missing layer is an error if a limit applies to it or if it is to be masked.

        Args:
            stack: keeps files open that are read by windows.
        """
        layers: dict[str, Flags] = {}
        for name, part in CLASSES.items():
            with self._needed(part, name), self._layer(part, metadata_name, image) as layer:
                layers[name] = class_flags(layer)
        with self._needed(TEST_FLAGS, *BITS), self._layer(TEST_FLAGS, metadata_name, image) as layer:
            layers |= detector_flags(layer, image.wavelength_nm or ())
        with self._needed(PIXEL_MASK, DEFECTIVE):
            mask = stack.enter_context(self._layer(PIXEL_MASK, metadata_name, image))
            layers[DEFECTIVE] = defective_flags(mask, len(image.bands))
        return layers

    @contextmanager
    def _needed(self, part: str, *names: str) -> Iterator[None]:
        """Suppress errors of a layer, unless one of its names is masked or limited."""
        try:
            yield
        except (SourceError, RasterioError) as error:
            what = error if isinstance(error, SourceError) else f"{self.path}: {part}.TIF can't be read"
            for name in names:
                if name in self.masked:
                    raise SourceError(f"{what}; continue without masking '{name}'") from None
                if getattr(self.limits, name, None) is not None:
                    option = f"--max-{name.replace('_', '-')} none"
                    raise SourceError(f"{what}; continue without this layer with `{option}`") from None

    @contextmanager
    def _layer(self, part: str, metadata_name: str, image: Raster) -> Iterator[Raster]:
        """Open a layer on the grid of the image."""
        with self._open(part, metadata_name) as layer:
            if layer.grid.shape != image.grid.shape:
                height, width = layer.grid.shape
                raise SourceError(f"{layer.name}: {height}x{width} px, but the image has another size")
            yield layer

    @contextmanager
    def _open(
        self,
        part: str,
        metadata_name: str,
        wavelength_nm: Sequence[float] | None = None,
        background: float | None = None,
    ) -> Iterator[Raster]:
        """Open a raster of the product by the last part of its name without extension (.TIF, _COG.tiff)."""
        stem = f"{metadata_name[: -len(METADATA)]}-{part}"
        pattern = re.compile(re.escape(stem) + RASTERS, re.IGNORECASE)
        with Container(self.path).open_raster(pattern, f"{part}.TIF", wavelength_nm, background) as raster:
            yield raster


class EnmapProducts(Product):
    """EnMAP L2A products: unpacked ones found by their METADATA.XML, zip files, and spectral images."""

    is_one_file = False

    def claims(self, name: str) -> bool:
        return is_metadata(name)

    def owned_prefix(self, name: str) -> str:
        return f"{name[: -len(METADATA)]}{IMAGE}"

    def recognizes(self, path: Path) -> bool:
        return _metadata_beside(path) is not None or is_product(path)

    @contextmanager
    def open_image(self, path: Path) -> Iterator[SpectralImage]:
        beside = _metadata_beside(path)
        folder, name = (path, None) if beside is None else (beside.parent, beside.name)
        scene = Scene(folder, folder.name, get_sensor("enmap"), 1, NO_LIMITS, metadata_name=name)
        with scene.open_image() as image:
            yield image

    def open(self, path: Path, name: str, options: TileOptions) -> list[Bundle]:
        sensor, size, limits, masked = options.sensor, options.size, options.limits, options.masked
        return [Scene(path.parent, name, sensor, size, limits, masked=masked, metadata_name=path.name)]

    def open_all(self, folder: Path, names: Sequence[str], options: TileOptions) -> list[Bundle]:
        """Return the products; products that share a folder are named after their files, others after their folders."""
        bundles: list[Bundle] = []
        folders = Counter(name.rpartition("/")[0] for name in names)
        for name in names:
            below = name.rpartition("/")[0]
            shown = product_name(below or folder.absolute().name, name, folders[below] > 1)
            bundles += self.open(folder / name, shown, options)
        return bundles


def _metadata_beside(path: Path) -> Path | None:
    """Return the METADATA.XML of a product's spectral image, or the file itself; None for any other file."""
    if is_metadata(path.name) and path.is_file():
        return path
    beside = path.with_name(f"{path.name.split(IMAGE)[0]}{METADATA}")
    return beside if IMAGE in path.name and is_metadata(beside.name) and beside.is_file() else None
