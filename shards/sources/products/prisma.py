"""PRISMA L2D products (``PRS_L2D_STD_*.he5``): orthorectified surface reflectance of two detectors, in HDF-EOS5.

Names, dimensions and scales are those of ASI's PRISMA Products Specification Document. Cubes are (row, band, column),
with bands in descending order of wavelength; a center of 0 marks a band that doesn't exist. Both detectors cover 920 to
1010 nm: the bands of both are kept, and a sensor's bands are found among them by wavelength.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window

from shards.errors import SourceError, TileError
from shards.sensors.sensor import NODATA
from shards.sources.digital_numbers import LARGEST, PER_REFLECTANCE
from shards.sources.grid import Grid
from shards.sources.image import SpectralImage
from shards.sources.products.hdf import damage, dataset, is_hdf, number, numbers, open_hdf, text
from shards.sources.products.product import Product, missing_wavelengths

if TYPE_CHECKING:
    import h5py

SWATHS = "HDFEOS/SWATHS"
SWATH = f"{SWATHS}/PRS_L2D_HCO"
FIELDS = f"{SWATH}/Data Fields"
LATITUDE = f"{SWATH}/Geolocation Fields/Latitude"

DETECTORS = ("Vnir", "Swir")
PIXEL_M = 30.0
LEVELS = 1 << 16
"""Number of stored values: 0 to 65535 are the reflectances from L2Scale*Min to L2Scale*Max."""

SAMPLED_ROWS = 8
"""Rows of a cube that are read to find the bands without measurements."""

ERRORS = {"invalid": 1, "negative": 2, "saturation": 3}
"""Codes of ``*_PIXEL_L2_ERR_MATRIX``: invalid in the L1 product; negative, and saturated after the correction."""


class PrismaProducts(Product):
    """PRISMA L2D products."""

    def claims(self, name: str) -> bool:
        return name.lower().endswith((".he5", ".h5"))

    def recognizes(self, path: Path) -> bool:
        if not is_hdf(path):
            return False
        with open_hdf(path) as file, damage(path):
            return any(name.startswith("PRS_L") for name in file.get(SWATHS, ()))

    @contextmanager
    def open_image(self, path: Path) -> Iterator[SpectralImage]:
        with open_hdf(path) as file:
            with damage(path):
                if SWATH not in file:
                    level = next(name for name in file[SWATHS] if name.startswith("PRS_L")).split("_")[1]
                    holds = "reflectance in sensor geometry" if level == "L2C" else "radiance, not reflectance"
                    raise SourceError(f"{path}: a PRISMA {level} product holds {holds}: order the L2D product")
                image = PrismaImage(file, path)
                image.grid  # noqa: B018, raises for a product that contradicts itself
            yield image


@dataclass(frozen=True)
class _Detector:
    """The cube of one detector.

    Attributes:
        cube: uint16 (rows, bands, columns).
        errors: uint8 of the same shape, or None.
        positions: positions of the bands that exist, in the order of the cube.
        good: whether each of these bands has a measurement in any of some rows: in deep absorption, none has.
        numbers: int16 (65536,), the digital number of each stored value.
    """

    cube: "h5py.Dataset"
    errors: "h5py.Dataset | None"
    positions: np.ndarray
    wavelength_nm: np.ndarray
    fwhm_nm: np.ndarray
    good: np.ndarray
    numbers: np.ndarray


class PrismaImage(SpectralImage):
    """The reflectance of an open PRISMA L2D product: the existing bands of the VNIR, then of the SWIR detector.

    Raises:
        SourceError: a dataset or attribute is missing or contradicts another.
    """

    def __init__(self, file: "h5py.File", path: Path) -> None:
        self._path, self._file = path, file
        self._detectors = [_detector(file, name, path) for name in DETECTORS]
        super().__init__(str(path), range(1, 1 + sum(len(detector.positions) for detector in self._detectors)))
        shapes = {(detector.cube.shape[0], detector.cube.shape[2]) for detector in self._detectors}
        if len(shapes) > 1:
            raise SourceError(f"{path}: the cubes of the detectors have other sizes: download it again")
        self._shape = shapes.pop()
        start = text(file.attrs.get("Product_StartTime"))  # 2021-07-14T10:23:45.123
        self.time = f"{start[:19].replace('-', '').replace(':', '')}Z" if len(start) >= 19 else ""
        self.scene = path.stem
        if all(detector.errors is not None for detector in self._detectors):
            self.quality = {name: partial(self._flags, code) for name, code in ERRORS.items()}

    @property
    def wavelength_nm(self) -> tuple[float, ...]:
        return tuple(np.concatenate([detector.wavelength_nm for detector in self._detectors]).tolist())

    @property
    def fwhm_nm(self) -> tuple[float, ...]:
        return tuple(np.concatenate([detector.fwhm_nm for detector in self._detectors]).tolist())

    @property
    def good(self) -> tuple[bool, ...]:
        return tuple(np.concatenate([detector.good for detector in self._detectors]).tolist())

    @cached_property
    def grid(self) -> Grid:
        """The UTM grid; the corners in the attributes are the centers of the corner pixels."""
        height, width = self._shape
        west, north, east, south = (
            number(self._file.attrs.get(f"Product_{name}"), f"Product_{name}", self._path)
            for name in ("ULcorner_easting", "ULcorner_northing", "LRcorner_easting", "LRcorner_northing")
        )
        spans = (east - west) / PIXEL_M, (north - south) / PIXEL_M
        if spans == (width - 1, height - 1):
            west, north = west - PIXEL_M / 2, north + PIXEL_M / 2
        elif spans != (width, height):
            raise SourceError(
                f"{self._path}: its corners are {spans[0] + 1:g} x {spans[1] + 1:g} pixels of {PIXEL_M:g} m apart, but "
                f"its cubes have {width} x {height}: download it again"
            )
        epsg = int(number(self._file.attrs.get("Epsg_Code"), "Epsg_Code", self._path))
        self._check_orientation()
        return Grid(height, width, f"EPSG:{epsg}", (PIXEL_M, 0.0, west, 0.0, -PIXEL_M, north))

    def _check_orientation(self) -> None:
        """Raise SourceError unless rows run from north to south, by the latitudes of the first column."""
        if LATITUDE in self._file:
            latitude = self._file[LATITUDE]
            if latitude.shape != self._shape or latitude[0, 0] <= latitude[-1, 0]:
                raise SourceError(f"{self._path}: its rows don't run from north to south: not an L2D product")

    def read_values(self, bands: Sequence[int], window: Window | None) -> np.ndarray:
        values = np.empty((len(bands), *self._size(window)), np.int16)
        for detector, inside, positions in self._parts(bands):
            values[inside] = detector.numbers[self._block(detector.cube, positions, window)]
        return values

    def _flags(self, code: int, bands: Sequence[int], window: Window | None) -> np.ndarray:
        flags = np.empty((len(bands), *self._size(window)), np.bool_)
        for detector, inside, positions in self._parts(bands):
            flags[inside] = self._block(detector.errors, positions, window) == code
        return flags

    def _parts(self, bands: Sequence[int]) -> Iterator[tuple[_Detector, np.ndarray, np.ndarray]]:
        """Yield each detector, which of ``bands`` are its own, and their positions in its cube."""
        wanted, first = np.asarray(bands) - 1, 0
        for detector in self._detectors:
            inside = np.flatnonzero((wanted >= first) & (wanted < first + len(detector.positions)))
            if len(inside):
                yield detector, inside, detector.positions[wanted[inside] - first]
            first += len(detector.positions)

    def _block(self, stored: Any, positions: np.ndarray, window: Window | None) -> np.ndarray:
        """Read bands of a cube as (bands, height, width)."""
        rows, columns = window.toslices() if window is not None else (slice(None), slice(None))
        low = positions.min()
        try:
            block = stored[rows, low : positions.max() + 1, columns]
        except (OSError, RuntimeError) as error:
            raise TileError(f"{self.name}: can't be read ({error}): download it again") from None
        return block[:, positions - low].transpose(1, 0, 2)

    def _size(self, window: Window | None) -> tuple[int, int]:
        return self._shape if window is None else (int(window.height), int(window.width))


def _detector(file: "h5py.File", name: str, path: Path) -> _Detector:
    """Return a detector's cube with the bands that exist."""
    cube = dataset(file, f"{FIELDS}/{name.upper()}_Cube", path, 3)
    centers, widths = (
        numbers(file.attrs.get(f"List_{kind}_{name}"), f"List_{kind}_{name}", path).ravel() for kind in ("Cw", "Fwhm")
    )
    if not len(centers) == len(widths) == cube.shape[1]:
        raise SourceError(f"{path}: {cube.shape[1]} {name} bands, but {len(centers)} centers and {len(widths)} widths")
    flags = numbers(file.attrs.get(f"List_Cw_{name}_Flags", np.ones(len(centers))), f"List_Cw_{name}_Flags", path)
    positions = np.flatnonzero((centers > 0) & (flags.ravel() != 0))
    if not len(positions):
        raise missing_wavelengths(f"{path}: List_Cw_{name}")
    errors = file.get(f"{FIELDS}/{name.upper()}_PIXEL_L2_ERR_MATRIX")
    if errors is not None and errors.shape != cube.shape:
        raise SourceError(f"{path}: the error matrix of {name} has another shape than its cube: download it again")
    low, high = (number(file.attrs.get(f"L2Scale{name}{end}"), f"L2Scale{name}{end}", path) for end in ("Min", "Max"))
    good = np.zeros(len(positions), np.bool_)
    try:
        for row in range(0, cube.shape[0], max(1, cube.shape[0] // SAMPLED_ROWS)):
            good |= cube[row].any(1)[positions]
    except OSError as error:
        raise SourceError(f"{path}: the cube of {name} can't be read ({error}): download it again") from None
    return _Detector(cube, errors, positions, centers[positions], widths[positions], good, _numbers(low, high))


def _numbers(low: float, high: float) -> np.ndarray:
    """Return the digital number of each stored value: 0 and reflectance beyond int16 are missing."""
    values = np.rint(PER_REFLECTANCE * (low + np.arange(LEVELS) * (high - low) / (LEVELS - 1)))
    values[0] = NODATA  # padding, and retrievals that failed
    return np.where(np.abs(values) <= LARGEST, values, NODATA).astype(np.int16)
