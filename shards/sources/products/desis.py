"""DESIS L2A products (``DESIS-HSI-L2A-*``): SPECTRAL_IMAGE.tif, METADATA.xml and QL_QUALITY-2.tif in a folder or zip.

Reflectance is ``value * gainOfBand + offsetOfBand``, by the METADATA.xml. QL_QUALITY-2.tif has one flag a layer, in the
order of DLR's DESIS product specification.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError

import numpy as np
from rasterio.windows import Window

from shards.errors import SourceError
from shards.sensors.sensor import NODATA
from shards.sources.containers import Container, find_metadata
from shards.sources.image import SpectralImage
from shards.sources.product import child_text, refuse_doctype
from shards.sources.products.product import Product, missing_wavelengths
from shards.sources.raster import Raster

METADATA = re.compile(r"(?:.*/)?(DESIS-HSI-(L\w\w)-[^/]*)-METADATA\.xml", re.IGNORECASE)
IMAGE, QUALITY = "SPECTRAL_IMAGE.tif", "QL_QUALITY-2.tif"

LAYERS = {"cloud_shadow": (1,), "snow": (3,), "haze": (4, 5), "cloud": (6, 7), "water": (8,)}
"""Bands of QL_QUALITY-2.tif of each quality layer: haze and cloud have one for land and one for water."""


class DesisProducts(Product):
    """DESIS L2A products."""

    is_one_file = False

    def claims(self, name: str) -> bool:
        return METADATA.fullmatch(name) is not None

    def owned_prefix(self, name: str) -> str:
        return name[: -len("METADATA.xml")]

    def recognizes(self, path: Path) -> bool:
        return _find(path) is not None

    @contextmanager
    def open_image(self, path: Path) -> Iterator[SpectralImage]:
        found = _find(path)
        assert found is not None
        container, name = found
        metadata = Metadata.parse(container.read(name), f"{container.path}/{name}")
        match = METADATA.fullmatch(name)
        if match and match[2].upper() != "L2A":
            raise SourceError(f"{path}: a DESIS {match[2]} product holds radiance, not reflectance: order the L2A one")
        with ExitStack() as stack:
            prefix = name[: -len("METADATA.xml")]
            image = stack.enter_context(container.open_raster(_exactly(prefix + IMAGE), IMAGE, None, NODATA))
            if len(metadata.wavelength_nm) != len(image.bands):
                raise SourceError(
                    f"{image.name}: {len(image.bands)} bands, but METADATA.xml lists {len(metadata.wavelength_nm)}"
                )
            image.describe(metadata.wavelength_nm, metadata.fwhm_nm, (metadata.gain, metadata.offset))
            image.time, image.scene = metadata.time, Path(prefix).name.rstrip("-")
            if prefix + QUALITY in container.names():
                layers = stack.enter_context(container.open_raster(_exactly(prefix + QUALITY), QUALITY))
                if layers.grid.shape != image.grid.shape or layers.file.count < max(map(max, LAYERS.values())):
                    raise SourceError(f"{layers.name}: the quality layers of another product than {image.name}")
                image.quality = {name: partial(_flags, layers, bands) for name, bands in LAYERS.items()}
            yield image


@dataclass(frozen=True)
class Metadata:
    """The fields of METADATA.xml that tiles need.

    Attributes:
        time: start of the acquisition, ``YYYYMMDDTHHMMSSZ``.
        gain, offset: reflectance = value * gain + offset.
    """

    time: str
    wavelength_nm: tuple[float, ...]
    fwhm_nm: tuple[float, ...]
    gain: float
    offset: float

    @classmethod
    def parse(cls, text: bytes, name: str) -> Self:
        """Parse the XML; raises SourceError if a field is missing or the bands differ in gain or offset."""
        try:
            refuse_doctype(text)
            root = ElementTree.fromstring(text)
            start = child_text(root, ".//temporalCoverage/startTime")
            bands = root.findall(".//bandCharacterisation/band")
            fields = ("wavelengthCenterOfBand", "wavelengthWidthOfBand", "gainOfBand", "offsetOfBand")
            columns = [tuple(float(child_text(band, field)) for band in bands) for field in fields]
        except (ElementTree.ParseError, ExpatError, ValueError, RecursionError) as error:
            raise SourceError(f"{name}: not the metadata of a DESIS product ({error})") from None
        if not bands or min(columns[0]) <= 0:
            raise missing_wavelengths(name)
        scales = sorted(set(zip(*columns[2:], strict=True)))
        if len(scales) > 1:
            raise SourceError(
                f"{name}: bands differ in gain or offset ({scales[0]}, {scales[1]}), as those of radiance do: order "
                "the L2A product"
            )
        return cls(f"{start[:19].replace('-', '').replace(':', '')}Z", columns[0], columns[1], *scales[0])


def _find(path: Path) -> tuple[Container, str] | None:
    """Return where the METADATA.xml of a product is: in a folder or zip file, or beside a spectral image."""
    if path.name.endswith(f"-{IMAGE}"):
        path = path.with_name(path.name.replace(IMAGE, "METADATA.xml"))
    return find_metadata(path, METADATA)


def _exactly(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name), re.IGNORECASE)


def _flags(layers: Raster, numbers: Sequence[int], bands: Sequence[int], window: Window | None) -> np.ndarray:
    return (layers.file.read(list(numbers), window=window) > 0).any(0)[None]
