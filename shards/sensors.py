"""Sensors: which bands a tile has, where they lie on the wavelength axis, how to find them in a file.

The EnMAP table is the 224-band characterisation of the L2A product, ordered by wavelength (the VNIR
and SWIR detectors interleave between 902 and 993 nm). SpectralEarth keeps 202 of them: without
bands 127..141 and 161..167 (1-based), the water-vapour gaps around 1.4 and 1.9 um. The CSV in the
publisher's repository names wrong wavelengths for 15 of the kept bands (it takes the second gap out
of the already shortened list); the table here is the corrected one.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

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
        wavelength_nm: centre of each kept band in nm, ascending.
        fwhm_nm: full width at half maximum of each kept band in nm.
        product_wavelength_nm: centres of all bands of the full product, ascending.
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
        """Find this sensor's bands in a file, by what the file says of itself.

        Args:
            count: number of bands in the file.
            wavelength_nm: the file's own band centres in nm in file order, or None if it names none.

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
        order = np.argsort(np.asarray(wavelength_nm), kind="stable")
        centres = np.asarray(wavelength_nm, dtype=np.float64)[order]
        if count == self.num_bands:
            expected, positions = self.wavelength_nm, order
        elif count == len(self.product_wavelength_nm):
            expected, positions = self.product_wavelength_nm, order[list(self.kept)]
        else:
            raise TileError(
                f"{count} bands: {self.name} has {self.num_bands} (SpectralEarth) "
                f"or {len(self.product_wavelength_nm)} (full product)"
            )
        off = np.abs(centres - np.asarray(expected))
        if not off.max() <= MATCH_TOLERANCE_NM:  # NaN too
            worst = int(off.argmax())
            raise TileError(
                f"wavelengths are not {self.name}'s: {centres[worst]:.1f} nm instead of {expected[worst]:.1f} nm"
            )
        return positions


@cache
def get_sensor(name: str) -> Sensor:
    """The sensor of this name; raises ConfigError naming the known ones."""
    if name != "enmap":
        raise ConfigError(f"unknown sensor '{name}': known is enmap")
    table = files("shards").joinpath("sensor_tables/enmap.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    kept = tuple(i for i, row in enumerate(rows) if row["kept"] == "1")
    centres = tuple(float(row["wavelength_nm"]) for row in rows)
    return Sensor(
        name="enmap",
        wavelength_nm=tuple(centres[i] for i in kept),
        fwhm_nm=tuple(float(rows[i]["fwhm_nm"]) for i in kept),
        product_wavelength_nm=centres,
        kept=kept,
        scale=10000.0,
        rgb=(43, 28, 10),
    )
