"""Raster files: their pixels as digital numbers, and all of their metadata.

`pack`, labels, fine-tuning and prediction all read rasters through this module. Metadata are in the file's header, in
tags of any domain, and in sidecar files (shards/sources/sidecars.py). All of them are read.
"""

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import from_gcps
from rasterio.windows import Window

from shards.errors import TileError
from shards.sensors.band_metadata import BandMetadata, read_band_metadata
from shards.sensors.sensor import NODATA, Sensor
from shards.sources.digital_numbers import UNSCALED, digital_numbers, missing_pixels
from shards.sources.grid import Grid
from shards.sources.image import ROUNDED, SpectralImage, note_once
from shards.sources.sidecars import ACCOMPANIED, gdal_options, header_beside

SAMPLED, SAMPLED_BANDS = 8, 8
"""Windows along each side of a file, their size in pixels, and bands: the sample that tells reflectance from digital
numbers."""

RADIANCE = re.compile(r"radiance|\bsr\b|steradian|W\s*/\s*\(?\s*[cm]?m", re.IGNORECASE)
"""Units of radiance in the metadata of bands or of the file, such as the data units of an ENVI header."""

MOST_REFLECTANCE = 2.0
"""Reflectance that few pixels exceed: clouds and glint do. Radiance in any common unit is larger."""


@contextmanager
def open_raster(
    location: Path | str, wavelength_nm: Sequence[float] | None = None, background: float | None = None
) -> Iterator["Raster"]:
    """Open a raster in any format that GDAL reads: a path, a URL, or a name within an archive (``/vsizip/...``).

    Args:
        location: path, URL, or name within an archive.
        wavelength_nm: see `Raster`.
        background: see `Raster`.

    Raises:
        TileError: the file is missing or is not a raster.
    """
    name = str(location)
    options = gdal_options(name)
    with rasterio.Env(**options):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a tile without a georeference is a tile
                file = rasterio.open(name)
        except (RasterioError, OSError, ValueError) as error:
            raise TileError(f"{name}: not a readable raster ({_first_line(error)})") from None
        with file:
            header = header_beside(name) if options is ACCOMPANIED and file.driver != "ENVI" else None
            yield Raster(file, name, wavelength_nm, background, header)


class Raster(SpectralImage):
    """An open raster, read by GDAL.

    Args:
        file: rasterio dataset.
        name: name used in messages.
        wavelength_nm: band centers in nm in file order, if known from elsewhere; by default the file's own.
        background: value that means "no measurement" if the file declares none.
        header: ENVI header beside a file of another format.

    Attributes:
        bands: 1-based numbers of the bands that hold measurements: all but an alpha band.
    """

    def __init__(
        self,
        file: Any,
        name: str,
        wavelength_nm: Sequence[float] | None = None,
        background: float | None = None,
        header: Path | None = None,
    ) -> None:
        has_alpha = file.count > 1 and file.colorinterp[-1] == ColorInterp.alpha
        super().__init__(name, range(1, file.count + (not has_alpha)))
        self.file, self.background, self._header = file, background, header
        self.has_rational_coefficients = bool(file.rpcs)
        self._given_wavelength_nm = None if wavelength_nm is None else tuple(float(center) for center in wavelength_nm)
        self._given_fwhm_nm: tuple[float, ...] | None = None
        self._given_scale: tuple[float, float] | None = None

    def describe(
        self,
        wavelength_nm: Sequence[float],
        fwhm_nm: Sequence[float] | None = None,
        scale: tuple[float, float] | None = None,
    ) -> None:
        """Use a product's metadata instead of the file's own.

        Args:
            wavelength_nm, fwhm_nm: centers and widths of the bands in nm, in the order of ``bands``.
            scale: scale and offset of all bands: reflectance = stored * scale + offset.
        """
        self._given_wavelength_nm = tuple(wavelength_nm)
        self._given_fwhm_nm = None if fwhm_nm is None else tuple(fwhm_nm)
        self._given_scale = scale

    @cached_property
    def metadata(self) -> BandMetadata:
        """The file's metadata on ``bands``; raises TileError if they are invalid."""
        with self._errors():
            return read_band_metadata(self.file, self.bands, self._header)

    @property
    def wavelength_nm(self) -> tuple[float, ...] | None:
        """Band centers in nm in the order of ``bands``, or None if unknown."""
        return self._given_wavelength_nm if self._given_wavelength_nm is not None else self.metadata.wavelength_nm

    @property
    def fwhm_nm(self) -> tuple[float, ...] | None:
        """Full widths at half maximum in nm in the order of ``bands``, or None if unknown."""
        return self._given_fwhm_nm if self._given_fwhm_nm is not None else self.metadata.fwhm_nm

    @property
    def good(self) -> tuple[bool, ...]:
        """False for bands, in the order of ``bands``, that a bad-band list marks with 0."""
        return self.metadata.good

    @cached_property
    def grid(self) -> Grid:
        """The pixel grid, from a geotransform or from ground control points that fit one within half a pixel."""
        file = self.file
        transform, crs = file.transform, file.crs
        if transform.is_identity:
            points, crs_of_points = file.gcps
            transform = _fitted(points)
            crs = crs or (crs_of_points if points else None)
        return Grid(
            file.height,
            file.width,
            crs.to_string() if crs else None,
            None if transform is None else tuple(transform)[:6],
        )

    def control_points(self, cell: int = 1) -> list[GroundControlPoint]:
        """Return ground control points, for squares of ``cell`` pixels; an empty list if `grid` has a transform."""
        if self.grid.transform is not None:
            return []
        return [
            GroundControlPoint(point.row / cell, point.col / cell, point.x, point.y, point.z)
            for point in self.file.gcps[0]
        ]

    @property
    def date(self) -> str:
        """ISO day of the acquisition or of the TIFF's DateTime; empty if neither is a date."""
        if self.time:
            return super().date
        tags = {key.lower(): text for key, text in (self.file.tags() | self.file.tags(ns="ENVI")).items()}
        for name in ("start_time", "acquisition_time", "tifftag_datetime"):  # 2022-07-24T10:45:26, 2022:07:24 10:45:26
            with suppress(ValueError):  # DateTime is often 0000:00:00
                return date.fromisoformat(tags.get(name, "").strip("{ ")[:10].replace(":", "-")).isoformat()
        return ""

    def select(self, sensor: Sensor) -> list[int]:
        """Return the 1-based numbers of the sensor's bands; raises TileError if any are missing, and for radiance."""
        tags = {key.lower(): text for key, text in (self.file.tags(ns="ENVI") | self.file.tags()).items()}
        units = [*self.file.units, *(tags.get(key) for key in ("data_units", "units", "unit"))]
        radiance = next((unit for unit in units if unit and RADIANCE.search(unit)), None)
        if radiance is not None:
            raise TileError(
                f"{self.name}: holds radiance ({radiance.strip(' {}')}), while {sensor.name} means reflectance: "
                "convert it to reflectance x 10000 by an atmospheric correction"
            )
        return super().select(sensor)

    def read_values(self, bands: Sequence[int], window: Window | None) -> np.ndarray:
        """Read bands as int16 (len(bands), height, width).

        Values are `NODATA` where the file's nodata values, masks or alpha band mark missing data, and in the bands of
        its bad-band list.

        Raises:
            TileError: the file is unreadable, or a value has no digital number in int16; those of integers are exact.
        """
        with self._errors():
            good = dict(zip(self.bands, self.metadata.good, strict=True))
            chosen = [band for band in bands if good[band]]
            stored = self.file.read(chosen, window=window)
            missing = self._missing(stored, chosen, window)
            values = digital_numbers(stored, missing, *self._scaling(chosen), chosen, self._is_reflectance)
            if len(chosen) == len(bands):
                return values
            every = np.full((len(bands), *values.shape[1:]), NODATA, np.int16)
            every[[index for index, band in enumerate(bands) if good[band]]] = values
            return every

    def valid(self, window: Window | None = None) -> np.ndarray | None:
        """Return which pixels of the first band are measured, bool (height, width); None if all of them are."""
        with self._errors():
            missing = self._missing(self.file.read([1], window=window), [1], window)
        return None if missing is None else ~missing[0]

    def _missing(self, stored: np.ndarray, bands: Sequence[int], window: Window | None) -> np.ndarray | None:
        missing = missing_pixels(stored, self._nodata(bands))
        hidden = self._hidden(window)
        if hidden is None:
            return missing
        return np.broadcast_to(hidden, stored.shape) if missing is None else missing | hidden

    def _nodata(self, bands: Sequence[int]) -> list[float | None]:
        values = self.file.nodatavals
        return [self.background if values[band - 1] is None else values[band - 1] for band in bands]

    def _hidden(self, window: Window | None) -> np.ndarray | None:
        """Return the pixels that are missing in all bands, bool (height, width), or None: a mask or alpha band hides
        them, or they hold undeclared fill."""
        hidden = None
        shown = self.file.read_masks(1, window=window)
        if not shown.all() and self._has_mask:
            hidden = shown == 0
        if len(self.bands) < self.file.count:  # with a nodata value, GDAL's mask ignores the alpha band
            hidden = _either(hidden, self.file.read(self.file.count, window=window) == 0)
        if self._may_have_fill:
            sampled = self.file.read(_sample(self.bands), window=window)
            negative = (sampled[0] < 0) & (sampled[0] >= NODATA)  # a value beyond int16 is an error
            hidden = _either(hidden, (sampled == sampled[0]).all(0) & negative)
        return hidden

    @cached_property
    def _may_have_fill(self) -> bool:
        """Return whether pixels with one negative number in all bands are fill: in floats without a nodata value.

        JPL's AVIRIS-NG reflectance has -0.005 outside of the swath, and doesn't declare it.
        """
        is_float = {np.dtype(name).kind for name in self.file.dtypes} == {"f"}
        return is_float and len(self.bands) >= SAMPLED_BANDS and set(self._nodata(self.bands)) == {None}

    @cached_property
    def _has_mask(self) -> bool:
        """Return whether the first band's mask is that of the entire file and not derived from a nodata value."""
        flags = self.file.mask_flag_enums[0]
        return MaskFlags.per_dataset in flags or MaskFlags.alpha in flags

    def _scaling(self, bands: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return float64 scale and offset of each band: reflectance = stored * scale + offset."""
        if self._given_scale is not None:
            scale, offset = self._given_scale
            return np.full(len(bands), scale), np.full(len(bands), offset)
        if self._is_reflectance:
            return np.ones(len(bands)), np.zeros(len(bands))
        scales, offsets = np.asarray(self.file.scales), np.asarray(self.file.offsets)
        if (scales == 1).all() and not offsets.any():  # GDAL's defaults: the file has none
            scale, offset = self._scale_in_tags
            scales, offsets = np.full(len(scales), scale), np.full(len(scales), offset)
        numbers = scales == 1  # the offset is then in digital numbers
        chosen = np.asarray(bands) - 1
        return np.where(numbers, UNSCALED, scales)[chosen], np.where(numbers, offsets * UNSCALED, offsets)[chosen]

    @cached_property
    def _is_reflectance(self) -> bool:
        """Return whether a floating-point file without a scale holds reflectance from 0 to 1, by a sample of pixels."""
        file, has_scale = self.file, self._given_scale is not None or self._scale_in_tags != (1, 0)
        if has_scale or {np.dtype(name).kind for name in file.dtypes} != {"f"}:
            return False
        if set(file.scales) != {1} or any(file.offsets):
            return False
        good = [band for band, is_good in zip(self.bands, self.metadata.good, strict=True) if is_good]
        bands = _sample(good)
        for row, column in itertools.product(*(range(0, side, max(1, side // SAMPLED)) for side in file.shape)):
            window = Window(column, row, min(SAMPLED, file.width - column), min(SAMPLED, file.height - row))
            stored = file.read(bands, window=window)
            missing = self._missing(stored, bands, window)
            values = stored[np.isfinite(stored) & (True if missing is None else ~missing)]
            if (values != np.rint(values)).any():
                is_reflectance = bool(np.percentile(np.abs(values), 90) <= MOST_REFLECTANCE)
                if is_reflectance:
                    note_once(ROUNDED)
                return is_reflectance
        return False

    @cached_property
    def _scale_in_tags(self) -> tuple[float, float]:
        """Return scale and offset from the tags of ENVI headers and the CF conventions; (1, 0) if there are none."""
        tags = {key.lower(): text for key, text in (self.file.tags(ns="ENVI") | self.file.tags()).items()}
        try:
            if "reflectance_scale_factor" in tags:  # the digital number of reflectance 1
                return 1 / float(tags["reflectance_scale_factor"]), 0.0
            return float(tags.get("scale_factor", 1)), float(tags.get("add_offset", 0))
        except (ValueError, ZeroDivisionError) as error:
            raise TileError(f"the scale or offset in its tags is not a number ({error})") from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors into one-line errors that name the file."""
        try:
            yield
        except TileError as error:
            message = str(error)
            raise TileError(message if message.startswith(self.name) else f"{self.name}: {message}") from None
        except (RasterioError, OSError, ValueError) as error:
            raise TileError(f"{self.name}: not a readable raster ({_first_line(error)})") from None


def _sample(bands: list[int]) -> list[int]:
    """Return some bands, from the first to close to the last."""
    return bands[:: max(1, len(bands) // SAMPLED_BANDS)]


def _either(hidden: np.ndarray | None, more: np.ndarray) -> np.ndarray | None:
    if not more.any():
        return hidden
    return more if hidden is None else hidden | more


def _fitted(points: Sequence[Any]) -> Any:
    """Fit an affine transform to ground control points; None unless it meets all of them within half a pixel."""
    if len(points) < 3:
        return None
    try:
        transform = from_gcps(points)
        back = ~transform
    except (RasterioError, ValueError, TypeError):
        return None
    off = [np.subtract(back @ (point.x, point.y), (point.col, point.row)) for point in points]
    return transform if np.abs(off).max() <= 0.5 else None


def _first_line(error: BaseException) -> str:
    return (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]
