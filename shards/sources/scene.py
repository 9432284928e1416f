"""An EnMAP L2A product (METADATA.XML, SPECTRAL_IMAGE, quality layers) cut into tiles on a grid of its UTM zone.

The grid is the zone's, not the scene's: cell (column, row) covers the same ground in every product, so
that acquisitions of one place become timestamps of one location without any resampling. Quality layers
become shares of a tile's pixels; limits on them decide which tiles are kept.
"""

import math
import os
import re
import zipfile
import zlib
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError, ParserCreate

import numpy as np
import rasterio
from pydantic import Field
from rasterio.errors import RasterioError
from rasterio.windows import Window

from shards.config import ConfigModel
from shards.errors import SourceError, TileError
from shards.files.untrusted import check_zipped
from shards.sensors.sensor import NODATA, Sensor
from shards.sources.geotiff import Tile
from shards.sources.layouts import TileSource
from shards.sources.raster import Raster, open_raster
from shards.sources.walk import is_data, member_name

Share = Annotated[float, Field(ge=0, le=1)]
METADATA = "-METADATA.XML"
PATCH = re.compile(r"-Y[0-9]+_X[0-9]+-METADATA", re.IGNORECASE)
RASTERS = r"(_COG)?\.(tiff?|bsq|bil|bip|dat|img)"
"""Endings of a product's rasters: products can be ordered as GeoTIFF, or in ENVI's interleaves."""

LAYERS = {
    "cloud": "QL_QUALITY_CLOUD",
    "cloud_shadow": "QL_QUALITY_CLOUDSHADOW",
    "haze": "QL_QUALITY_HAZE",
    "cirrus": "QL_QUALITY_CIRRUS",  # 1 thin, 2 medium, 3 thick
    "snow": "QL_QUALITY_SNOW",
}
"""File name part of each quality layer; any value above 0 counts, but for the layer's own nodata."""

GRID_M, ORIGIN_M = 30.0, 15.0
"""Pixel edges of L2A products lie at 15 m + whole multiples of 30 m, in every UTM zone seen so far. Where one
does not, cells take its nearest pixels and the tile keeps its true place.
"""

GAIN = 0.0001
MOST_METADATA_BYTES = 64 << 20  # a METADATA.XML has 300 kB
CACHE_BYTES = 512 << 20
"""GDAL's block cache: a row of 512x512x224 blocks, the largest in use, is 350 MB. The default is a twentieth of
the memory: too little on small machines (8 times slower), and on large ones as much for every worker.
"""


class SceneLimits(ConfigModel):
    """Largest share of a tile's pixels, None for no limit. ``nodata``: pixels with any kept band missing.

    The thresholds of SpectralEarth's tiles are not documented. HySpecNet-11k took products of less than a
    tenth of clouds; we ask that of every tile.
    """

    cloud: Share | None = 0.1
    cloud_shadow: Share | None = None
    haze: Share | None = None
    cirrus: Share | None = None
    snow: Share | None = None
    nodata: Share | None = 0.1


def is_product(path: Path) -> bool:
    """Whether a path is a product: a folder or a zip file with one METADATA.XML in it.

    Raises:
        SourceError: an unreadable zip file, or several products in one.
    """
    names = metadata_names(path)
    if len(names) > 1:
        raise SourceError(f"{path}: {len(names)} products in one; give each a folder of its own")
    return bool(names)


def metadata_names(path: Path) -> list[str]:
    """Names of the metadata files within a folder, or within a zip file; none for anything else.

    Raises:
        SourceError: an unreadable zip file: it may not go missing in silence.
    """
    if path.is_dir():
        names = [entry.name for entry in os.scandir(path)]
    elif path.suffix.lower() == ".zip" and path.is_file():
        names = zip_names(path)
    else:
        return []
    return sorted(name for name in names if is_metadata(name))


def is_metadata(name: str) -> bool:
    """Whether a file is the METADATA.XML of a product, and not of a patch that was cut from one."""
    return name.upper().endswith(METADATA) and is_data(member_name(name)) and not PATCH.search(name)


def zip_names(path: Path) -> list[str]:
    """Names of the members of a zip file; raises SourceError where it can't be read."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.namelist()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise SourceError(f"{path}: not a readable zip file ({error}); download it again or move it away") from None


def vsizip(path: Path) -> str:
    """GDAL's name of a zip file; in braces it may have any ending."""
    return f"/vsizip/{path}" if path.suffix.lower() == ".zip" else f"/vsizip/{{{path}}}"


@dataclass(frozen=True)
class Metadata:
    """What METADATA.XML says, as far as tiles need it.

    Attributes:
        time: start of the acquisition, ``YYYYMMDDTHHMMSSZ``.
        wavelength_nm: band centers in the order of the image.
        background: pixel value of "no measurement".
    """

    time: str
    wavelength_nm: tuple[float, ...]
    background: float

    @classmethod
    def parse(cls, text: bytes, name: str) -> "Metadata":
        """Read the XML; raises SourceError where something is missing or reflectance is scaled otherwise."""
        try:
            _refuse_doctype(text)
            root = ElementTree.fromstring(text)
            start = datetime.fromisoformat(_text(root, ".//temporalCoverage/startTime"))
            bands = root.findall(".//bandCharacterisation/bandID")
            centers = tuple(float(_text(band, "wavelengthCenterOfBand")) for band in bands)
            scales = {(float(_text(band, "GainOfBand")), float(_text(band, "OffsetOfBand"))) for band in bands}
            background = float(_text(root, ".//backgroundValue"))
        except (ElementTree.ParseError, ExpatError, ValueError, LookupError, RecursionError) as error:
            raise SourceError(f"{name}: not the metadata of an EnMAP L2A product ({error})") from None
        if scales != {(GAIN, 0.0)}:
            odd = sorted(scales - {(GAIN, 0.0)})
            raise SourceError(
                f"{name}: gain and offset {odd[:1]} where {GAIN} and 0 (reflectance x 10000) were expected"
            )
        if start.utcoffset() != timedelta(0):
            raise SourceError(f"{name}: start time {start.isoformat()} is not a UTC time")
        return cls(start.strftime("%Y%m%dT%H%M%SZ"), centers, background)


def _refuse_doctype(text: bytes) -> None:
    """Raise ValueError for XML that declares entities, which can stand for gigabytes; products have none."""

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, which products have not")

    parser = ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(text, True)


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None:
        raise ValueError(f"no element {path.removeprefix('.//')}")
    return found.strip()


@dataclass
class Scene:
    """A `Bundle`: the tiles of one product.

    Attributes:
        path: of the product's folder or zip file.
        name: relative to the source.
        size: height and width of the tiles in pixels.
        filtered: tiles left out, by the limit that they broke first.
        metadata_name: of the METADATA.XML within ``path``; None where there is one alone.
    """

    path: Path
    name: str
    sensor: Sensor
    size: int
    limits: SceneLimits
    filtered: dict[str, int] = field(default_factory=dict)
    metadata_name: str | None = None

    def fingerprint(self) -> str:
        files = [self.path]
        if self.path.is_dir():
            stem = self._metadata_name()[: -len(METADATA)]
            files = sorted(file for file in self.path.iterdir() if file.name.startswith(stem))
        return ", ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)

    def tiles(self, skip: Container[str], scratch: Path | None = None) -> Iterator[tuple[TileSource, Tile | TileError]]:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), self.open_image() as (image, bands, metadata):
            metadata_name = self._metadata_name()
            scene = Path(metadata_name).name[: -len(METADATA)]
            layers = self._quality(scene, metadata_name, image.file)
            self.filtered.clear()
            for location, window in _cells(image.file, self.size):
                date = f"{metadata.time[:4]}-{metadata.time[4:6]}-{metadata.time[6:8]}"
                source = TileSource(location, metadata.time, f"{self.name}!{location}", scene, date)
                if source.key in skip:
                    continue
                tile = self._tile(image, window, bands, layers, date, source)
                if tile is not None:
                    yield source, tile

    @contextmanager
    def open_image(self) -> Iterator[tuple[Raster, list[int], Metadata]]:
        """The spectral image, opened, the numbers of the sensor's bands in it, from 1, and what METADATA.XML says.

        Raises:
            SourceError: something is missing or unreadable, or the bands are not the sensor's.
        """
        metadata_name = self._metadata_name()
        metadata = Metadata.parse(self._read(metadata_name), f"{self.path}/{metadata_name}")
        stem = f"{Path(metadata_name).name[: -len(METADATA)]}-SPECTRAL_IMAGE"
        with self._open(stem, metadata_name, metadata.wavelength_nm, metadata.background) as image:
            if len(metadata.wavelength_nm) != len(image.bands):
                raise SourceError(
                    f"{image.name}: {len(image.bands)} bands where METADATA.XML names {len(metadata.wavelength_nm)}"
                )
            try:
                bands = image.select(self.sensor)
            except TileError as error:
                raise SourceError(str(error)) from None
            yield image, bands, metadata

    def _metadata_name(self) -> str:
        names = [self.metadata_name] if self.metadata_name else metadata_names(self.path)
        if not names:
            raise SourceError(f"{self.path}: no longer a product: its METADATA.XML is gone")
        return names[0]

    def _tile(
        self,
        image: Raster,
        window: Window,
        bands: list[int],
        layers: dict[str, np.ndarray],
        date: str,
        source: TileSource,
    ) -> Tile | TileError | None:
        """One cell of the grid; None where it breaks a limit."""
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
        place = image.file.transform
        x, y = place.c + GRID_M * window.col_off, place.f - GRID_M * window.row_off
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
        """Quality layers, (height, width) each; one that is missing is an error where there is a limit on it."""
        layers = {}
        for name, part in LAYERS.items():
            try:
                with self._open(f"{scene}-{part}", metadata_name) as layer:
                    file = layer.file
                    if (file.height, file.width) != (image.height, image.width):
                        raise SourceError(f"{file.name}: {file.height}x{file.width} px, the image is of another size")
                    layers[name] = file.read(1, masked=True).filled(0)
            except (SourceError, RasterioError) as error:
                if getattr(self.limits, name) is not None:
                    what = error if isinstance(error, SourceError) else f"{self.path}: {part}.TIF can't be read"
                    option = f"--max-{name.replace('_', '-')} none"
                    raise SourceError(f"{what}; `{option}` goes on without this layer") from None
        return layers

    @contextmanager
    def _open(self, stem: str, metadata_name: str, *told: Any) -> Iterator[Raster]:
        """Open a raster of the product by its name without the ending (.TIF, _COG.tiff); ``told``: see `Raster`."""
        prefix = metadata_name[: -len(Path(metadata_name).name)]
        if self.path.is_dir():
            names, base = [entry.name for entry in self.path.iterdir()], str(self.path)
        else:
            names, base = zip_names(self.path), vsizip(self.path)
        wanted = re.compile(re.escape(prefix + stem) + RASTERS, re.IGNORECASE)
        found = [name for name in names if wanted.fullmatch(name)]
        if not found:
            raise SourceError(f"{self.path}: has no {stem.rsplit('-', 1)[-1]}.TIF")
        with ExitStack() as stack:
            try:
                raster = stack.enter_context(open_raster(f"{base}/{found[0]}", *told))
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
        raise SourceError(f"{where}: {size} bytes, more than any METADATA.XML; download the product again")


def _cells(image: Any, size: int) -> Iterator[tuple[str, Window]]:
    """Cells of the zone's grid that lie wholly within an image, from the north-west: (location, window).

    Cell (column, row) begins ``column * size`` pixels east and ``row * size`` pixels north of the grid's origin.
    """
    place, epsg = image.transform, image.crs.to_epsg() if image.crs else None
    if epsg is None or (place.a, place.b, place.d, place.e) != (GRID_M, 0.0, 0.0, -GRID_M):
        raise SourceError(f"{image.name}: expected a north-up UTM image of {GRID_M:g} m pixels, got {tuple(place)[:6]}")
    # halves always up: round() would take two products that are half a pixel off to different pixels
    left, top = (math.floor((edge - ORIGIN_M) / GRID_M + 0.5) for edge in (place.c, place.f))
    first_column, last_column = math.ceil(left / size), (left + image.width) // size
    first_row, last_row = math.ceil((top - image.height) / size), top // size
    for row in reversed(range(first_row, last_row)):
        for column in range(first_column, last_column):
            window = Window(column * size - left, top - (row + 1) * size, size, size)
            yield f"{epsg}-{column}-{row}", window
