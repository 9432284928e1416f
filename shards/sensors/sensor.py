"""Sensors: the bands of a tile, their wavelengths, and how to find them in a file.

The EnMAP table is the 224-band characterization of the L2A product, ordered by wavelength (the VNIR and SWIR detectors
interleave between 902 and 993 nm). SpectralEarth keeps 202 bands: all but 127..141 and 161..167 (1-based), the
water-vapor gaps around 1.4 and 1.9 um. The CSV in the publisher's repository has wrong wavelengths for 15 of the kept
bands (it removes the second gap from the already shortened list); the table here is correct.

The other tables match SpectralEarth's downstream tiles: the 235 bands of DESIS, with its nominal width; the 198
calibrated bands of EO-1 Hyperion in the order of their numbers (8 to 57, 77 to 224: two overlap), with nominal widths;
the 150 airborne bands of HYPERVIEW.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np

from shards.errors import ConfigError, TileError
from shards.sensors.band_match import match_bands
from shards.sensors.band_table import BandTable, parse_band_table, read_band_table
from shards.sensors.spectrum import rgb_positions

NODATA = -32768
"""The int16 value that means "no measurement" in shards, whatever the source file uses. Zero is a valid value."""

MATCH_TOLERANCE_NM = 1.0
"""Band centers differ by about 0.2 nm between product versions; neighbors on one detector by at least 5 nm."""


SCALE = 10000.0
"""Digital number of reflectance 1."""


@dataclass(frozen=True)
class Sensor:
    """An imaging spectrometer and its bands in tiles.

    Attributes:
        name: registry name, e.g. ``"enmap"``, or the file name of a band table without its extension.
        wavelength_nm: center of each kept band in nm, in the order of a tile.
        fwhm_nm: full width at half maximum of each kept band in nm.
        product_wavelength_nm: centers of all bands of the full product in nm, in product order.
        kept: positions of the kept bands in the full product, 0-based, ascending.
        scale: digital number of reflectance 1.0.
        rgb: positions of a red, a green and a blue band among the kept bands, for pictures.
    """

    name: str
    wavelength_nm: tuple[float, ...]
    fwhm_nm: tuple[float, ...]
    product_wavelength_nm: tuple[float, ...]
    kept: tuple[int, ...]
    scale: float
    rgb: tuple[int, int, int]

    @classmethod
    def of_table(cls, name: str, table: BandTable, scale: float = SCALE) -> Self:
        """Return a sensor with the bands of a table."""
        centers, widths = ([column[band] for band in table.kept] for column in (table.wavelength_nm, table.fwhm_nm))
        rgb = rgb_positions(centers)
        return cls(name, tuple(centers), tuple(widths), table.wavelength_nm, table.kept, scale, rgb)

    @property
    def num_bands(self) -> int:
        return len(self.wavelength_nm)

    @property
    def is_registered(self) -> bool:
        """Return whether the registry has exactly these bands under this name."""
        return self.name in sensor_names() and self == get_sensor(self.name)

    @property
    def identity(self) -> str:
        """The sensor's part of a dataset's content hash: its name, plus a hash of its bands if it is not registered."""
        return self.name if self.is_registered else self.identity_by_bands

    @property
    def identity_by_bands(self) -> str:
        bands = json.dumps([self.wavelength_nm, self.fwhm_nm, self.scale])
        return f"{self.name}:{hashlib.sha256(bands.encode()).hexdigest()}"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types; see `from_dict`."""
        return {
            "name": self.name,
            "product_wavelength_nm": list(self.product_wavelength_nm),
            "kept": list(self.kept),
            "fwhm_nm": list(self.fwhm_nm),
            "scale": self.scale,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return a sensor from the output of `to_dict`; raises ConfigError for anything else."""
        try:
            product = tuple(float(center) for center in values["product_wavelength_nm"])
            kept, widths = tuple(values["kept"]), tuple(float(width) for width in values["fwhm_nm"])
            name, scale = str(values["name"]), float(values["scale"])
            if not kept or len(kept) != len(widths) or not all(0 <= band < len(product) for band in kept):
                raise ValueError(f"{len(kept)} bands kept of {len(product)}, {len(widths)} widths")
            centers = tuple(product[band] for band in kept)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"a stored band table is damaged ({error!r}); pack or index the tiles again") from None
        return cls(name, centers, widths, product, kept, scale, rgb_positions(centers))

    def select_bands(self, count: int, wavelength_nm: Sequence[float] | None) -> np.ndarray:
        """Find this sensor's bands in a file by the file's metadata; the file may have additional bands.

        Args:
            count: number of bands in the file.
            wavelength_nm: the file's band centers in nm in file order, or None if it gives none.

        Returns:
            int array (num_bands,): 0-based band position in the file for each kept band.

        Raises:
            TileError: the file's bands are not those of this sensor.
        """
        if wavelength_nm is None:
            if count == len(self.product_wavelength_nm):  # HySpecNet: the product's own order, by wavelength
                return np.asarray(self.kept)
            if count != self.num_bands:
                raise TileError(
                    f"{count} bands without wavelengths: expected the {self.num_bands} bands of {self.name}, "
                    f"the {len(self.product_wavelength_nm)} of its product, or per-band 'wavelength' tags"
                )
            return np.arange(count)
        centers_nm = tuple(float(center) for center in wavelength_nm)
        # match the full product first: a kept band may have a neighbor that is left out
        in_product = match_bands(self.product_wavelength_nm, centers_nm)
        if (
            in_product is not None
            and self._distance(self.product_wavelength_nm, centers_nm, in_product).max() <= MATCH_TOLERANCE_NM
        ):
            positions = in_product[list(self.kept)]
        else:
            positions = self._match_kept(centers_nm)
        _refuse_ties(centers_nm, positions)
        return positions

    def _match_kept(self, centers_nm: tuple[float, ...]) -> np.ndarray:
        positions = match_bands(self.wavelength_nm, centers_nm)
        centers = np.asarray(centers_nm)[np.isfinite(centers_nm)]
        if positions is None:
            raise TileError(
                f"wavelengths are not {self.name}'s: {len(centers)} bands have a wavelength, expected "
                f"{self.num_bands}: name the sensor of these tiles with --sensor, or resample them"
            )
        off = np.flatnonzero(~(self._distance(self.wavelength_nm, centers_nm, positions) <= MATCH_TOLERANCE_NM))
        if len(off):
            nearest_nm = np.abs(np.asarray(self.wavelength_nm)[:, None] - centers).min(1)
            alone = np.flatnonzero(nearest_nm > MATCH_TOLERANCE_NM)  # otherwise two bands match the same one
            off = alone if len(alone) else off
            expected = self.wavelength_nm[off[0]]
            nearest = centers[np.abs(centers - expected).argmin()]
            raise TileError(
                f"wavelengths are not {self.name}'s: {nearest:.1f} nm instead of {expected:.1f} nm ({len(off)} of "
                f"{self.num_bands} bands are missing): name the sensor of these tiles with --sensor, or resample them"
            )
        return positions

    @staticmethod
    def _distance(expected: tuple[float, ...], centers_nm: tuple[float, ...], positions: np.ndarray) -> np.ndarray:
        return np.abs(np.asarray(expected) - np.asarray(centers_nm)[positions])


def _refuse_ties(centers_nm: tuple[float, ...], positions: np.ndarray) -> None:
    """Raise an error for bands with equal (rounded) centers unless the file is in order of wavelength."""
    centers = np.asarray(centers_nm)
    if np.all(np.diff(centers) >= 0):
        return
    values, counts = np.unique(centers[np.isfinite(centers)], return_counts=True)
    tied = np.isin(centers[positions], values[counts > 1])
    if tied.any():
        twins = np.flatnonzero(centers == centers[positions[int(tied.argmax())]]) + 1
        raise TileError(
            f"bands {twins[0]} and {twins[1]} are both at {centers[twins[0] - 1]:g} nm, and the file is not sorted by "
            "wavelength: give their wavelengths with more decimals"
        )


TABLES = files("shards.sensors").joinpath("tables")


@cache
def sensor_names() -> tuple[str, ...]:
    """Return the registered names, sorted."""
    return tuple(sorted(file.name.removesuffix(".csv") for file in TABLES.iterdir() if file.name.endswith(".csv")))


def get_sensor(name: str) -> Sensor:
    """Return the sensor with this name, or with the band table in this CSV file (shards/sensors/band_table.py).

    Use it to create a dataset; afterward the bands stored with the dataset are authoritative (`sensor_of_bands`).

    Raises:
        ConfigError: the name is unknown (the message lists the known ones), or the file is not a band table.
    """
    if name in sensor_names():
        return _registered(name)
    path = Path(name)
    if path.suffix.lower() == ".csv" or path.is_file():
        return Sensor.of_table(path.stem, read_band_table(path))
    raise ConfigError(
        f"unknown sensor '{name}': known are {', '.join(sensor_names())}; a CSV file with the columns "
        "wavelength_nm and fwhm_nm defines another"
    )


@cache
def _registered(name: str) -> Sensor:
    text = TABLES.joinpath(f"{name}.csv").read_text(encoding="utf-8")
    return Sensor.of_table(name, parse_band_table(text, f"sensor {name}"))


def sensor_of_bands(
    name: str, wavelength_nm: Sequence[float], fwhm_nm: Sequence[float], scale: float = SCALE
) -> Sensor:
    """Return the sensor whose bands are stored with a dataset or model, regardless of the registry.

    If the registry has the same bands, the sensor also gets the bands of the full product, to read such files.
    """
    centers, widths = tuple(map(float, wavelength_nm)), tuple(map(float, fwhm_nm))
    if name in sensor_names():
        known = _registered(name)
        if len(centers) == known.num_bands:
            if np.abs(np.asarray(centers) - known.wavelength_nm).max() <= MATCH_TOLERANCE_NM:
                return replace(known, wavelength_nm=centers, fwhm_nm=widths, scale=scale)
    return Sensor.of_table(name, BandTable(centers, widths, tuple(range(len(centers)))), scale)
