"""The interface of an open image: bands with wavelengths on a pixel grid, read by windows as digital numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from shards.console import get_logger
from shards.errors import SourceError, TileError
from shards.sensors.sensor import NODATA, Sensor
from shards.sources.grid import Grid

logger = get_logger(__name__)

Flags = Callable[[Sequence[int], Window | None], np.ndarray]
"""A quality layer, as a function of 1-based bands and a window: bool, broadcastable to (bands, height, width), True
where the layer flags a value."""


class SpectralImage(ABC):
    """An open image of an imaging spectrometer.

    Attributes:
        name: name used in messages.
        bands: 1-based numbers of the bands that hold measurements.
        time: start of the acquisition, ``YYYYMMDDTHHMMSSZ``; empty if unknown.
        scene: name of the product; empty for a plain raster.
        quality: quality layers by name.
        masked: names of the quality layers whose flagged values `read` returns as missing.
        has_rational_coefficients: whether rational polynomial coefficients (RPC) place the image.
    """

    name: str
    bands: list[int]
    time: str = ""
    scene: str = ""
    masked: tuple[str, ...] = ()
    has_rational_coefficients: bool = False

    def __init__(self, name: str, bands: Sequence[int]) -> None:
        self.name, self.bands = name, list(bands)
        self.quality: dict[str, Flags] = {}

    @property
    @abstractmethod
    def wavelength_nm(self) -> tuple[float, ...] | None:
        """Band centers in nm in the order of ``bands``, or None if unknown."""

    @property
    def fwhm_nm(self) -> tuple[float, ...] | None:
        """Full widths at half maximum in nm in the order of ``bands``, or None if unknown."""
        return None

    @property
    def good(self) -> tuple[bool, ...]:
        """False for bands, in the order of ``bands``, that the file marks as bad; `read` returns them as missing."""
        return (True,) * len(self.bands)

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The pixel grid."""

    @property
    def date(self) -> str:
        """ISO day of the acquisition; empty if unknown."""
        return f"{self.time[:4]}-{self.time[4:6]}-{self.time[6:8]}" if self.time else ""

    def select(self, sensor: Sensor) -> list[int]:
        """Return the 1-based numbers of the sensor's bands; raises TileError if any are missing."""
        wavelength_nm = self.wavelength_nm
        try:
            return [self.bands[position] for position in sensor.select_bands(len(self.bands), wavelength_nm)]
        except TileError as error:
            raise TileError(f"{self.name}: {error}") from None

    @abstractmethod
    def read_values(self, bands: Sequence[int], window: Window | None) -> np.ndarray:
        """Read bands as `read` does, without the masks of ``masked``."""

    def read(self, bands: Sequence[int] | None = None, window: Window | None = None) -> np.ndarray:
        """Read bands, by default all of ``self.bands``, as digital numbers (reflectance x 10000).

        Returns:
            int16 (len(bands), height, width): `NODATA` where nothing was measured, where a quality layer of ``masked``
            flags a value, and in bad bands.

        Raises:
            TileError: the file is unreadable, or a value has no digital number in int16.
        """
        bands = self.bands if bands is None else bands
        values = self.read_values(bands, window)
        for name in self.masked:
            values[np.broadcast_to(self.quality[name](bands, window), values.shape)] = NODATA
        return values

    def mask(self, names: Sequence[str]) -> None:
        """Make `read` return the values that these quality layers flag as missing.

        Raises:
            SourceError: the image has no such layer.
        """
        for name in names:
            if name not in self.quality:
                known = f"it has {', '.join(self.quality)}" if self.quality else "it has none"
                raise SourceError(f"{self.name}: no quality layer '{name}' to mask: {known}")
        self.masked = tuple(names)

    def control_points(self, cell: int = 1) -> list[GroundControlPoint]:
        """Return ground control points, for squares of ``cell`` pixels; an empty list if `grid` has a transform."""
        return []


ROUNDED = "floating-point reflectance is stored as int16: reflectance x 10000, rounded"


@cache
def note_once(text: str) -> None:
    """Log a note about how files are read, once per process instead of once per file."""
    logger.info(text)
