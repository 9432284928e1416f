"""Band sets: the bands through which a spectral-shift evaluation sees tiles (LESSViT, arXiv 2605.18541).

A band set is either a subset of the tiles' own bands, or another sensor, whose bands are computed from the tiles by
Gaussian spectral responses. The latter separates the sensor from the place: both see the same scene.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shards.errors import ConfigError
from shards.sensors.resampling import response_matrix
from shards.sensors.sensor import Sensor, get_sensor

VNIR_END_NM = 1000.0
"""End of the visible and near infrared."""

RANDOM_BANDS, RANDOM_SEED = 40, 7


@dataclass(frozen=True)
class BandSet:
    """Bands that are computed from those of a tile.

    Attributes:
        wavelength_nm, fwhm_nm: center and width of each of the N bands in nm, ascending.
        response: float64 (N, C), weights of the tile's C bands; rows sum to 1.
    """

    name: str
    wavelength_nm: np.ndarray
    fwhm_nm: np.ndarray
    response: np.ndarray

    def resampled_to(self, wavelength_nm: Sequence[float], fwhm_nm: Sequence[float]) -> np.ndarray:
        """Return weights (M, C) of a tile's bands for M bands that are computed from those of the set alone.

        Bands in gaps between those of the set are interpolated linearly; rows of bands beyond its range are zero.
        """
        matrix = response_matrix(wavelength_nm, fwhm_nm, self.wavelength_nm, self.fwhm_nm)
        centers = np.asarray(wavelength_nm, float)
        is_within = (centers >= self.wavelength_nm[0]) & (centers <= self.wavelength_nm[-1])
        in_gap = is_within & ~matrix.any(1)
        matrix[in_gap] = np.transpose(
            [np.interp(centers[in_gap], self.wavelength_nm, unit) for unit in np.eye(len(self.wavelength_nm))]
        )
        return matrix @ self.response


def band_set(name: str, sensor: Sensor) -> BandSet:
    """Return the band set of a name (`finetune.config.BandSetName`) for tiles of a sensor.

    Bands of another sensor that the tiles don't cover are left out.

    Raises:
        ConfigError: the tiles have none of its bands.
    """
    centers, widths = np.asarray(sensor.wavelength_nm, float), np.asarray(sensor.fwhm_nm, float)
    if name in SENSORS:
        wanted_nm, wanted_fwhm = SENSORS[name]()
        response = response_matrix(wanted_nm, wanted_fwhm, centers, widths)
        covered = response.any(1)
        found = BandSet(name, wanted_nm[covered], wanted_fwhm[covered], response[covered])
    else:
        order = np.argsort(centers, kind="stable")
        chosen = order[SUBSETS[name](centers[order])]
        found = BandSet(name, centers[chosen], widths[chosen], np.eye(len(centers))[chosen])
    if not len(found.wavelength_nm):
        raise ConfigError(f"key 'shift': {sensor.name} has no bands of '{name}': leave it out")
    return found


# ---- subsets: functions of ascending centers that return positions ----


def _random(centers: np.ndarray) -> np.ndarray:
    count = min(RANDOM_BANDS, len(centers))
    return np.sort(np.random.default_rng(RANDOM_SEED).choice(len(centers), count, replace=False))


def _range(begin: float, end: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a subset from one fraction of the bands to another."""
    return lambda centers: np.arange(round(begin * len(centers)), round(end * len(centers)))


SUBSETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all": lambda centers: np.arange(len(centers)),
    "even": lambda centers: np.arange(0, len(centers), 2),
    "odd": lambda centers: np.arange(1, len(centers), 2),
    "first_half": _range(0.0, 0.5),
    "middle_half": _range(0.25, 0.75),
    "last_half": _range(0.5, 1.0),
    "random_40": _random,
    "vnir": lambda centers: np.flatnonzero(centers < VNIR_END_NM),
    "swir": lambda centers: np.flatnonzero(centers >= VNIR_END_NM),
}


# ---- sensors: functions that return centers and widths in nm, ascending ----

Table = tuple[np.ndarray, np.ndarray]

SENTINEL2 = (
    (442.7, 20.0),
    (492.7, 65.0),
    (559.8, 35.0),
    (664.6, 30.0),
    (704.1, 14.0),
    (740.5, 14.0),
    (782.8, 19.0),
    (832.8, 105.0),
    (864.7, 21.0),
    (945.1, 19.0),
    (1373.5, 29.0),
    (1613.7, 90.0),
    (2202.4, 174.0),
)
"""Center and width in nm of the bands of Sentinel-2A's MSI (Sentinel-2 MSI technical guide)."""


def _registered(name: str) -> Callable[[], Table]:
    def table() -> Table:
        sensor = get_sensor(name)
        order = np.argsort(sensor.wavelength_nm, kind="stable")
        return np.asarray(sensor.wavelength_nm)[order], np.asarray(sensor.fwhm_nm)[order]

    return table


def _regular(begin_nm: float, end_nm: float, step_nm: float, fwhm_nm: float) -> Callable[[], Table]:
    """Return the table of a spectrometer with bands at equal steps."""

    def table() -> Table:
        centers = np.arange(begin_nm, end_nm, step_nm)
        return centers, np.full(len(centers), fwhm_nm)

    return table


def _sentinel2() -> Table:
    centers, widths = np.asarray(SENTINEL2).T
    return centers, widths


SENSORS: dict[str, Callable[[], Table]] = {
    "prisma": _regular(402.0, 2500.0, 12.0, 12.0),
    "desis": _registered("desis"),
    "eo1": _registered("eo1"),
    "emit": _regular(381.0, 2493.5, 7.41, 8.6),
    "sentinel2": _sentinel2,
}
"""Nominal bands of sensors. PRISMA's and EMIT's are regular grids of their mean spacing and width."""
