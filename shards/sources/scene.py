"""EnMAP L2A products (METADATA.XML, SPECTRAL_IMAGE, quality layers), cut into tiles on a grid of the UTM zone.

The grid is the zone's, not the scene's: cell (column, row) covers the same ground in every product, so
that acquisitions of one place become timestamps of one location without any resampling. Quality layers
become shares of a tile's pixels; limits on them decide which tiles are kept.
"""

import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from shards.errors import SourceError, TileError
from shards.files.untrusted import check_zipped
from shards.sensors.sensor import NODATA, Sensor
from shards.sources.bundles import Bundle, TileOptions, TileSource
from shards.sources.geotiff import Tile
from shards.sources.limits import SceneLimits
from shards.sources.product import (
    METADATA,
    Metadata,
    is_metadata,
    metadata_names,
    product_name,
    product_stem,
    vsizip,
    zip_names,
)
from shards.sources.raster import Raster, open_raster
from shards.sources.tile_names import SourceTile

RASTERS = r"(_COG)?\.(tiff?|bsq|bil|bip|dat|img)"
"""Extensions of a product's rasters: products can be ordered as GeoTIFF or in ENVI's interleaves."""

LAYERS = {
    "cloud": "QL_QUALITY_CLOUD",
    "cloud_shadow": "QL_QUALITY_CLOUDSHADOW",
    "haze": "QL_QUALITY_HAZE",
    "cirrus": "QL_QUALITY_CIRRUS",  # 1 thin, 2 medium, 3 thick
    "snow": "QL_QUALITY_SNOW",
}
"""File name part of each quality layer; any value above 0 counts, except the layer's own nodata."""

GRID_M, ORIGIN_M = 30.0, 15.0
"""Pixel edges of L2A products lie at 15 m plus multiples of 30 m in every UTM zone seen so far. For a product with
other edges, cells take the nearest pixels, and the tile keeps its true transform.
"""

MOST_METADATA_BYTES = 64 << 20  # a METADATA.XML has 300 kB
CACHE_BYTES = 512 << 20
"""Size of GDAL's block cache: a row of 512x512x224 blocks, the largest in use, takes 350 MB. The default is 5 % of
memory for each worker: too little on small machines (8 times slower), too much on large ones.
"""


@dataclass
class Scene(Bundle):
    """A `Bundle` of the tiles of one product.

    Attributes:
        path: path of the product's folder or zip file.
        name: path relative to the source.
        size: height and width of the tiles in pixels.
        filtered: number of tiles left out, by the first limit that they exceed.
        metadata_name: name of the METADATA.XML within ``path``; None if there is only one.
    """

    kind = "product"

    path: Path
    name: str
    sensor: Sensor
    size: int
    limits: SceneLimits
    filtered: dict[str, int] = field(default_factory=dict)
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

    def tiles(self, skip: Container[str], scratch: Path | None = None) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), self.open_image() as (image, bands, metadata):
            metadata_name = self._metadata_name()
            scene = Path(metadata_name).name[: -len(METADATA)]
            layers = self._quality(scene, metadata_name, image.file)
            self.filtered.clear()
            for location, window in _cells(image.file, self.size):
                date = f"{metadata.time[:4]}-{metadata.time[4:6]}-{metadata.time[6:8]}"
                source = SourceTile(location, metadata.time, f"{self.name}!{location}", scene, date)
                if source.key in skip:
                    continue
                tile = self._tile(image, window, bands, layers, date, source)
                if tile is not None:
                    yield source, tile

    @contextmanager
    def open_image(self) -> Iterator[tuple[Raster, list[int], Metadata]]:
        """Open the spectral image; yield it with the 1-based numbers of the sensor's bands and the parsed METADATA.XML.

        Raises:
            SourceError: a file is missing or unreadable, or the bands are not the sensor's.
        """
        metadata_name = self._metadata_name()
        metadata = Metadata.parse(self._read(metadata_name), f"{self.path}/{metadata_name}")
        stem = f"{Path(metadata_name).name[: -len(METADATA)]}-SPECTRAL_IMAGE"
        with self._open(stem, metadata_name, metadata.wavelength_nm, metadata.background) as image:
            if len(metadata.wavelength_nm) != len(image.bands):
                raise SourceError(
                    f"{image.name}: {len(image.bands)} bands, but METADATA.XML lists {len(metadata.wavelength_nm)}"
                )
            try:
                bands = image.select(self.sensor)
            except TileError as error:
                raise SourceError(str(error)) from None
            yield image, bands, metadata

    def _metadata_name(self) -> str:
        names = [self.metadata_name] if self.metadata_name else metadata_names(self.path)
        if not names:
            raise SourceError(f"{self.path}: no longer a product: its METADATA.XML is missing")
        return names[0]

    def _tile(
        self,
        image: Raster,
        window: Window,
        bands: list[int],
        layers: dict[str, np.ndarray],
        date: str,
        source: SourceTile,
    ) -> Tile | TileError | None:
        """Read one cell of the grid; None if it exceeds a limit."""
        area = window.toslices()
        quality = {name: float(np.mean(layer[area] > 0)) for name, layer in layers.items()}
        if self._is_over(quality):
            return None
        try:
            values = image.read(bands, window)
        except TileError as error:
            return TileError(f"{source.path}: {str(error).removeprefix(f'{image.name}: ')}")
        if self._is_over({"nodata": float(np.mean((values == NODATA).any(0)))}):
            return None
        origin = image.file.transform
        x, y = origin.c + GRID_M * window.col_off, origin.f - GRID_M * window.row_off
        transform = (GRID_M, 0.0, x, 0.0, -GRID_M, y)
        return Tile(values, image.grid.crs, transform, date, quality)

    def _is_over(self, shares: dict[str, float]) -> bool:
        for name, share in shares.items():
            limit = getattr(self.limits, name)
            if limit is not None and share > limit:
                self.filtered[name] = self.filtered.get(name, 0) + 1
                return True
        return False

    def _quality(self, scene: str, metadata_name: str, image: Any) -> dict[str, np.ndarray]:
        """Read the quality layers, (height, width) each; a missing layer is an error if a limit applies to it."""
        layers = {}
        for name, part in LAYERS.items():
            try:
                with self._open(f"{scene}-{part}", metadata_name) as layer:
                    file = layer.file
                    if (file.height, file.width) != (image.height, image.width):
                        raise SourceError(f"{file.name}: {file.height}x{file.width} px, but the image has another size")
                    layers[name] = file.read(1, masked=True).filled(0)
            except (SourceError, RasterioError) as error:
                if getattr(self.limits, name) is not None:
                    what = error if isinstance(error, SourceError) else f"{self.path}: {part}.TIF can't be read"
                    option = f"--max-{name.replace('_', '-')} none"
                    raise SourceError(f"{what}; continue without this layer with `{option}`") from None
        return layers

    @contextmanager
    def _open(self, stem: str, metadata_name: str, *metadata: Any) -> Iterator[Raster]:
        """Open a raster by its name without extension (.TIF, _COG.tiff); ``metadata`` is passed to `Raster`."""
        prefix = metadata_name[: -len(Path(metadata_name).name)]
        if self.path.is_dir():
            names, base = [entry.name for entry in self.path.iterdir()], str(self.path)
        else:
            names, base = zip_names(self.path), vsizip(self.path)
        pattern = re.compile(re.escape(prefix + stem) + RASTERS, re.IGNORECASE)
        matches = [name for name in names if pattern.fullmatch(name)]
        if not matches:
            raise SourceError(f"{self.path}: has no {stem.rsplit('-', 1)[-1]}.TIF")
        with ExitStack() as stack:
            try:
                raster = stack.enter_context(open_raster(f"{base}/{matches[0]}", *metadata))
            except TileError as error:
                raise SourceError(str(error).replace(vsizip(self.path), str(self.path))) from None
            yield raster

    def _read(self, name: str) -> bytes:
        if self.path.is_dir():
            path = self.path / name
            _refuse_large(path.stat().st_size, str(path))
            return path.read_bytes()
        try:
            with zipfile.ZipFile(self.path) as file:
                member = file.getinfo(name)
                check_zipped(member, self.path.stat().st_size)
                _refuse_large(member.file_size, f"{self.path}/{name}")
                return file.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError) as error:
            raise SourceError(
                f"{self.path}: {name} can't be read ({error}); download it again or move it away"
            ) from None


def _refuse_large(size: int, where: str) -> None:
    if size > MOST_METADATA_BYTES:
        raise SourceError(f"{where}: {size} bytes, too large for a METADATA.XML; download the product again")


def _cells(image: Any, size: int) -> Iterator[tuple[str, Window]]:
    """Yield the cells of the zone's grid that lie entirely within an image, from the northwest: (location, window).

    Cell (column, row) starts ``column * size`` pixels east and ``row * size`` pixels north of the grid's origin.
    """
    transform, epsg = image.transform, image.crs.to_epsg() if image.crs else None
    if epsg is None or (transform.a, transform.b, transform.d, transform.e) != (GRID_M, 0.0, 0.0, -GRID_M):
        raise SourceError(
            f"{image.name}: expected a north-up UTM image of {GRID_M:g} m pixels, got {tuple(transform)[:6]}"
        )
    # always round halves up: round() would move two products that are half a pixel off to different pixels
    left, top = (math.floor((edge - ORIGIN_M) / GRID_M + 0.5) for edge in (transform.c, transform.f))
    first_column, last_column = math.ceil(left / size), (left + image.width) // size
    first_row, last_row = math.ceil((top - image.height) / size), top // size
    for row in reversed(range(first_row, last_row)):
        for column in range(first_column, last_column):
            window = Window(column * size - left, top - (row + 1) * size, size, size)
            yield f"{epsg}-{column}-{row}", window


class EnmapProducts(TileSource):
    """Unpacked EnMAP L2A products, found by their METADATA.XML."""

    is_one_file = False

    def claims(self, name: str) -> bool:
        return is_metadata(name)

    def owned_prefix(self, name: str) -> str:
        return f"{name[: -len(METADATA)]}-SPECTRAL_IMAGE"

    def open(self, path: Path, name: str, options: TileOptions) -> list[Bundle]:
        return [Scene(path.parent, name, options.sensor, options.size, options.limits, metadata_name=path.name)]

    def open_all(self, folder: Path, names: Sequence[str], options: TileOptions) -> list[Bundle]:
        """Return the products; products that share a folder are named after their files, others after their folders."""
        bundles: list[Bundle] = []
        folders = Counter(name.rpartition("/")[0] for name in names)
        for name in names:
            below = name.rpartition("/")[0]
            shown = product_name(below or folder.absolute().name, name, folders[below] > 1)
            bundles += self.open(folder / name, shown, options)
        return bundles
