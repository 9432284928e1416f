"""Quality layers of EnMAP L2A products.

The meaning of values and bits is that of the product specification (EN-PCV-ICD-2009-2), as ESA's SNAP decodes them.
"""

from collections.abc import Sequence

import numpy as np
from rasterio.errors import RasterioError
from rasterio.windows import Window

from shards.errors import SourceError, TileError
from shards.sources.image import Flags
from shards.sources.raster import Raster

CLASSES = {
    "cloud": "QL_QUALITY_CLOUD",
    "cloud_shadow": "QL_QUALITY_CLOUDSHADOW",
    "haze": "QL_QUALITY_HAZE",
    "cirrus": "QL_QUALITY_CIRRUS",  # 1 thin, 2 medium, 3 thick
    "snow": "QL_QUALITY_SNOW",
}
"""File name part of each layer of the whole pixel; any value above 0 counts, except the layer's own nodata."""

TEST_FLAGS = "QL_QUALITY_TESTFLAGS"
BITS = {"interpolated": (3, 2), "saturation": (5, 4), "artifact": (7, 6)}
"""Bits of the test flags: one for the VNIR bands of a pixel, and one for its SWIR bands."""

PIXEL_MASK, DEFECTIVE = "QL_PIXELMASK", "defective"
"""File name part and name of the layer with one band for each band of the image: 1 marks a defective value."""

SWIR_BEGIN_NM, VNIR_END_NM = 900.0, 1000.0
"""Where the detectors overlap. Bands between are of either, and their flags are those of both."""


def class_flags(layer: Raster) -> Flags:
    """Return the flags of a layer of `CLASSES`, which is read at once."""
    values = layer.file.read(1, masked=True).filled(0) > 0

    def flags(bands: Sequence[int], window: Window | None) -> np.ndarray:
        return _cut(values, window)[None]

    return flags


def detector_flags(layer: Raster, wavelength_nm: Sequence[float]) -> dict[str, Flags]:
    """Return the flags of each name in `BITS`, from the layer of test flags, which is read at once.

    Args:
        wavelength_nm: of the bands of the image, in their order.
    """
    values, centers = layer.file.read(1, masked=True).filled(0), np.asarray(wavelength_nm)[:, None, None]

    def of_bits(vnir: int, swir: int) -> Flags:
        def flags(bands: Sequence[int], window: Window | None) -> np.ndarray:
            of_vnir, of_swir = ((_cut(values, window) >> bit) & 1 > 0 for bit in (vnir, swir))
            chosen = centers[np.asarray(bands) - 1]
            return ((chosen < VNIR_END_NM) & of_vnir) | ((chosen > SWIR_BEGIN_NM) & of_swir)

        return flags

    return {name: of_bits(*bits) for name, bits in BITS.items()}


def defective_flags(layer: Raster, bands: int) -> Flags:
    """Return the flags of the pixel mask, which is read by windows while the layer is open.

    Raises:
        SourceError: the layer hasn't one band for each of the ``bands`` of the image.
    """
    if layer.file.count != bands:
        raise SourceError(f"{layer.name}: {layer.file.count} bands, but the image has {bands}")

    def flags(bands: Sequence[int], window: Window | None) -> np.ndarray:
        try:
            return layer.file.read(list(bands), window=window, masked=True).filled(0) == 1
        except RasterioError as error:
            raise TileError(f"{layer.name}: can't be read ({str(error).splitlines()[0]})") from None

    return flags


def _cut(layer: np.ndarray, window: Window | None) -> np.ndarray:
    return layer if window is None else layer[window.toslices()]
