"""EO-1 Hyperion L1T products: one GeoTIFF a band and an MTL file, in a folder or zip file.

Values are radiance in W / (m^2 sr um), multiplied by 40 (VNIR) or 80 (SWIR), as in SpectralEarth's tiles of ``eo1``.
The 198 calibrated bands of 242 are read: 8 to 57 and 77 to 224 (USGS, EO-1 user guide). Their centers are not in the
product but in the table of the sensor.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from shards.errors import SourceError, TileError
from shards.sensors.sensor import Sensor, get_sensor
from shards.sources.containers import Container, find_metadata
from shards.sources.image import SpectralImage, note_once
from shards.sources.products.product import Product
from shards.sources.raster import Raster

MTL = re.compile(r"(?:.*/)?(EO1H[^/]*)_MTL[^/]*\.txt", re.IGNORECASE)
ENTRY = re.compile(r'^\s*(\w+)\s*=\s*"?([^"\n]*?)"?\s*$', re.MULTILINE)

CALIBRATED = (*range(8, 58), *range(77, 225))
"""Numbers of the calibrated bands, in the order of the sensor's table."""

FACTORS = {"SCALING_FACTOR_VNIR": 40.0, "SCALING_FACTOR_SWIR": 80.0}

LARGEST = np.iinfo(np.int16).max
"""Stored value of radiance beyond int16. L1T products have no flags of saturated pixels."""

FILLED = (13, 23, 33)
"""Positions of bands in the visible, of which real pixels have radiance: all are 0 outside of the swath."""


class HyperionProducts(Product):
    """EO-1 Hyperion L1T products."""

    is_one_file = False

    def claims(self, name: str) -> bool:
        return MTL.fullmatch(name) is not None

    def owned_prefix(self, name: str) -> str:
        match = MTL.fullmatch(name)
        assert match is not None
        return f"{name[: match.end(1)]}_B"

    def recognizes(self, path: Path) -> bool:
        found = find_metadata(path, MTL)
        return found is not None and b"HYPERION" in found[0].read(found[1]).upper()

    @contextmanager
    def open_image(self, path: Path) -> Iterator[SpectralImage]:
        found = find_metadata(path, MTL)
        assert found is not None
        container, name = found
        entries = dict(ENTRY.findall(container.read(name).decode(errors="replace")))
        for factor, expected in FACTORS.items():
            if entries.get(factor) is None or float(entries[factor]) != expected:
                raise SourceError(f"{path}: {factor} is {entries.get(factor, 'missing')}, expected {expected:g}")
        with ExitStack() as stack:
            try:
                mosaic = _stacked(container, _band_files(container, name, entries))
                file = stack.enter_context(rasterio.open(mosaic))
            except (RasterioError, OSError) as error:
                raise SourceError(f"{path}: its bands can't be read ({str(error).splitlines()[0]})") from None
            image = HyperionImage(file, str(path))
            image.time = _time(entries)
            image.scene = Path(name).name.split("_MTL")[0]
            yield image


class HyperionImage(Raster):
    """The radiance of the calibrated bands, as stored: x 40 (VNIR) and x 80 (SWIR)."""

    def __init__(self, file: Any, name: str) -> None:
        super().__init__(file, name)
        sensor = get_sensor("eo1")
        self.describe(sensor.wavelength_nm, sensor.fwhm_nm)
        self.quality = {"saturation": self._saturated}

    def select(self, sensor: Sensor) -> list[int]:
        if set(sensor.wavelength_nm) != set(get_sensor("eo1").wavelength_nm):
            raise TileError(
                f"{self.name}: holds radiance, while {sensor.name} means reflectance: pack it with --sensor eo1, or "
                "convert it to reflectance x 10000 by an atmospheric correction"
            )
        note_once("EO-1 Hyperion L1T: radiance x 40 (VNIR) and x 80 (SWIR), not reflectance")
        return super().select(sensor)

    def _saturated(self, bands: Sequence[int], window: Window | None) -> np.ndarray:
        try:
            return self.file.read(list(bands), window=window) == LARGEST
        except RasterioError as error:
            raise TileError(f"{self.name}: can't be read ({str(error).splitlines()[0]})") from None

    def _hidden(self, window: Window | None) -> np.ndarray | None:
        outside = (self.file.read(list(FILLED), window=window) == 0).all(0)
        return outside if outside.any() else None


def _time(entries: dict[str, str]) -> str:
    """Return the start of the acquisition; empty if the MTL file has no date."""
    day = entries.get("ACQUISITION_DATE", "").replace("-", "")
    clock = re.search(r"\d\d:\d\d:\d\d", entries.get("START_TIME", ""))  # 2016 184 10:15:30
    return f"{day}T{clock[0].replace(':', '') if clock else '000000'}Z" if re.fullmatch(r"\d{8}", day) else ""


def _band_files(container: Container, name: str, entries: dict[str, str]) -> list[str]:
    """Return the names of the calibrated bands' files; raises SourceError if one is missing."""
    folder = name[: -len(Path(name).name)]
    known = set(container.names())
    files = [folder + entries.get(f"BAND{band}_FILE_NAME", "") for band in CALIBRATED]
    missing = [band for band, file in zip(CALIBRATED, files, strict=True) if file not in known]
    if missing:
        raise SourceError(
            f"{container.path}: {len(missing)} of {len(CALIBRATED)} calibrated bands are missing, e.g. band "
            f"{missing[0]}: download the product again"
        )
    return files


def _stacked(container: Container, files: list[str]) -> str:
    """Return a virtual raster (GDAL VRT) with one file a band; raises SourceError if the files have other grids."""
    root, grids = ElementTree.Element("VRTDataset"), set()
    for number, name in enumerate(files, start=1):
        with rasterio.open(container.gdal_name(name)) as file:
            grids.add((file.width, file.height, file.crs.to_wkt() if file.crs else "", file.transform.to_gdal()))
            band = ElementTree.SubElement(root, "VRTRasterBand", dataType="Int16", band=str(number))
        source = ElementTree.SubElement(band, "SimpleSource")
        ElementTree.SubElement(source, "SourceFilename").text = container.gdal_name(name)
        ElementTree.SubElement(source, "SourceBand").text = "1"
    if len(grids) > 1:
        raise SourceError(f"{container.path}: its bands have other sizes or places: download the product again")
    width, height, wkt, transform = grids.pop()
    root.set("rasterXSize", str(width))
    root.set("rasterYSize", str(height))
    if wkt:
        ElementTree.SubElement(root, "SRS").text = wkt
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(repr, transform))
    return ElementTree.tostring(root, encoding="unicode")
