"""Sensors: which bands a tile has, where they lie on the wavelength axis, how to find them in a file.

The EnMAP table is the 224-band characterisation of the L2A product, ordered by wavelength (the VNIR
and SWIR detectors interleave between 902 and 993 nm). SpectralEarth keeps 202 of them: without
bands 127..141 and 161..167 (1-based), the water-vapour gaps around 1.4 and 1.9 um. The CSV in the
publisher's repository names wrong wavelengths for 15 of the kept bands (it takes the second gap out
of the already shortened list); the table here is the corrected one.

The others are as SpectralEarth's downstream tiles have them: DESIS's 235 bands, with its nominal width; EO-1
Hyperion's 198 calibrated bands in the order of their numbers (8 to 57, 77 to 224: two overlap), with nominal widths;
HYPERVIEW's 150 airborne bands.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from shards.band_match import match_bands
from shards.errors import ConfigError, TileError

NODATA = -32768
"""The int16 value that marks "no measurement" in shards, whatever the source file used. Zero is a value."""

MATCH_TOLERANCE_NM = 1.0
"""Band centres differ by about 0.2 nm between product versions; neighbours on one detector by 5 nm and more."""


@dataclass(frozen=True)
class Sensor:
    """An imaging spectrometer as it appears in tiles.

    Attributes:
        name: registry name, e.g. ``"enmap"``.
        wavelength_nm: centre of each kept band in nm, in the order of a tile.
        fwhm_nm: full width at half maximum of each kept band in nm.
        product_wavelength_nm: centres of all bands of the full product, in that order.
        kept: positions of the kept bands in the full product, 0-based, ascending.
        scale: digital number of reflectance 1.0.
        rgb: positions of a red, green and blue band among the kept bands, for pictures.
    """

    name: str
    wavelength_nm: tuple[float, ...]
    fwhm_nm: tuple[float, ...]
    product_wavelength_nm: tuple[float, ...]
    kept: tuple[int, ...]
    scale: float
    rgb: tuple[int, int, int]

    @property
    def num_bands(self) -> int:
        return len(self.wavelength_nm)

    def select_bands(self, count: int, wavelength_nm: Sequence[float] | None) -> np.ndarray:
        """Find this sensor's bands in a file, by what the file says of itself; it may have others besides.

        Args:
            count: number of bands in the file.
            wavelength_nm: the file's own band centers in nm in file order, or None if it names none.

        Returns:
            int array (num_bands,): the file's 0-based band position for each kept band.

        Raises:
            TileError: the file's bands are not those of this sensor.
        """
        if wavelength_nm is None:
            if count == len(self.product_wavelength_nm):  # HySpecNet: the product's own order, by wavelength
                return np.asarray(self.kept)
            if count != self.num_bands:
                raise TileError(
                    f"{count} bands and no wavelengths: expected the {self.num_bands} bands of {self.name}, "
                    f"the {len(self.product_wavelength_nm)} of its product, or per-band 'wavelength' tags"
                )
            return np.arange(count)
        found = tuple(float(center) for center in wavelength_nm)
        # the whole product first: next to a kept band may lie one that is left out
        whole = match_bands(self.product_wavelength_nm, found)
        if whole is not None and self._distance(self.product_wavelength_nm, found, whole).max() <= MATCH_TOLERANCE_NM:
            positions = whole[list(self.kept)]
        else:
            positions = self._match_kept(found)
        _refuse_ties(found, positions)
        return positions

    def _match_kept(self, found: tuple[float, ...]) -> np.ndarray:
        positions = match_bands(self.wavelength_nm, found)
        centers = np.asarray(found)[np.isfinite(found)]
        if positions is None:
            raise TileError(
                f"wavelengths are not {self.name}'s: {len(centers)} bands with a wavelength where {self.num_bands} are "
                f"wanted: name the sensor of these tiles by --sensor, or resample them"
            )
        off = np.flatnonzero(~(self._distance(self.wavelength_nm, found, positions) <= MATCH_TOLERANCE_NM))
        if len(off):
            nearest_nm = np.abs(np.asarray(self.wavelength_nm)[:, None] - centers).min(1)
            alone = np.flatnonzero(nearest_nm > MATCH_TOLERANCE_NM)  # else two bands want the same one
            off = alone if len(alone) else off
            wanted = self.wavelength_nm[off[0]]
            nearest = centers[np.abs(centers - wanted).argmin()]
            raise TileError(
                f"wavelengths are not {self.name}'s: {nearest:.1f} nm instead of {wanted:.1f} nm ({len(off)} of "
                f"{self.num_bands} bands are not there): name the sensor of these tiles by --sensor, or resample them"
            )
        return positions

    @staticmethod
    def _distance(wanted: tuple[float, ...], found: tuple[float, ...], positions: np.ndarray) -> np.ndarray:
        return np.abs(np.asarray(wanted) - np.asarray(found)[positions])


def _refuse_ties(found: tuple[float, ...], positions: np.ndarray) -> None:
    """Two bands of one center, rounded perhaps, can only be told apart where the file is in order of wavelength."""
    centers = np.asarray(found)
    if np.all(np.diff(centers) >= 0):
        return
    values, counts = np.unique(centers[np.isfinite(centers)], return_counts=True)
    tied = np.isin(centers[positions], values[counts > 1])
    if tied.any():
        twins = np.flatnonzero(centers == centers[positions[int(tied.argmax())]]) + 1
        raise TileError(
            f"bands {twins[0]} and {twins[1]} both lie at {centers[twins[0] - 1]:g} nm, and the file is not in order "
            "of wavelength: give their wavelengths with more decimals"
        )


TABLES = files("shards").joinpath("sensor_tables")
MOST_TABLE = 16 << 20
"""Bytes of a band table; real ones have a few kilobytes."""
RGB_NM = (641.0, 556.0, 468.0)
"""Where a picture's red, green and blue are taken."""


def sensor_names() -> list[str]:
    """Names of the registry, sorted."""
    return sorted(entry.name.removesuffix(".csv") for entry in TABLES.iterdir() if entry.name.endswith(".csv"))


@cache
def get_sensor(name: str) -> Sensor:
    """The sensor of this name, or of a table of one's own: a CSV file with the columns ``wavelength_nm`` and
    ``fwhm_nm``, one row a band in the order of the tiles, and optionally ``kept`` (1, or 0 for bands to leave out).

    Raises:
        ConfigError: unknown name (the known ones are listed), or a file that is no such table.
    """
    if name.endswith(".csv"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"sensor {path}: no such band table")
        try:
            if path.stat().st_size > MOST_TABLE:
                raise ValueError(f"more than {MOST_TABLE >> 20} MiB")
            return _read_table(path.stem, path.read_text(encoding="utf-8-sig"), name)
        except (OSError, ValueError, csv.Error) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"sensor {path}: not a readable table of bands ({reason}); save it as CSV, UTF-8"
            ) from None
    if name not in sensor_names():
        raise ConfigError(
            f"unknown sensor '{name}': known are {', '.join(sensor_names())}; a CSV file with the columns "
            "wavelength_nm and fwhm_nm makes another"
        )
    return _read_table(name, TABLES.joinpath(f"{name}.csv").read_text(), name)


def _read_table(name: str, text: str, where: str) -> Sensor:
    rows = list(csv.DictReader(text.splitlines()))
    try:
        centres = tuple(float(row["wavelength_nm"]) for row in rows)
        widths = tuple(float(row["fwhm_nm"]) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"sensor {where}: needs numbers in the columns wavelength_nm and fwhm_nm ({error})") from None
    kept = tuple(i for i, row in enumerate(rows) if row.get("kept", "1") == "1")
    if not kept or not all(100 <= centre < 1e6 for centre in centres) or not all(0 < width < 1e6 for width in widths):
        raise ConfigError(f"sensor {where}: needs bands, their wavelengths and widths in nm")
    wavelength_nm = tuple(centres[i] for i in kept)
    red, green, blue = (int(np.abs(np.asarray(wavelength_nm) - colour).argmin()) for colour in RGB_NM)
    return Sensor(
        name=name,
        wavelength_nm=wavelength_nm,
        fwhm_nm=tuple(widths[i] for i in kept),
        product_wavelength_nm=centres,
        kept=kept,
        scale=10000.0,
        rgb=(red, green, blue),
    )
