"""How images of some bands become the input of an encoder: picked from more, or taken as they are by wavelength."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pretrain.models.normalize import Normalizer
from pretrain.models.spectrum import Spectrum, spectrum_of
from pretrain.weights.description import BandStatistics, EncoderDescription
from pretrain.weights.resample import centers_and_widths
from shards.sensors.sensor import MATCH_TOLERANCE_NM


class BandInput(NamedTuple):
    """The bands of images for an encoder.

    Attributes:
        normalize: digital numbers to z-scores.
        positions: of the encoder's bands among those of the images; None for all of them in order.
        spectrum: what the bands are, for encoders by wavelength; None for those of the encoder's file.
    """

    normalize: Normalizer
    positions: list[int] | None = None
    spectrum: Spectrum | None = None


def by_wavelength(description: EncoderDescription, wavelengths_nm: Any, fwhm_nm: Any) -> BandInput:
    """Return the input of an encoder by wavelength for any bands.

    Means and standard deviations are those of the dataset with these bands that the encoder was trained on; for other
    bands, see `statistics`. A warning names bands outside of the ranges that the encoder was trained on.

    Raises:
        WeightsError: not one number above 0 for each band.
    """
    centers, widths = centers_and_widths(wavelengths_nm, fwhm_nm)
    if outside := bands_outside(description, centers, widths):
        warnings.warn(f"{outside}: leave them out", stacklevel=2)
    mu, sigma = statistics(description.tables, centers, widths)
    return BandInput(Normalizer(mu, sigma, description.clip), None, spectrum_of(centers.tolist(), widths.tolist()))


def statistics(
    tables: Sequence[BandStatistics], centers: np.ndarray, widths: np.ndarray
) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of the digital numbers of bands.

    They are those of the table with these bands, else interpolated linearly along the wavelength, and averaged over the
    tables that cover a band. Beyond the ends of all of them, they are those of the nearest band of each.
    """
    tables = [table for table in tables if _has_bands(table, centers)][:1] or tables
    covered = np.array([_covers(table, centers, widths) for table in tables])
    weights = np.where(covered.any(0), covered, True).astype(np.float64)
    mu, sigma = (
        weights * [interpolate(centers, table.wavelength_nm, getattr(table, name)) for table in tables]
        for name in ("mu", "sigma")
    )
    return (mu.sum(0) / weights.sum(0)).tolist(), (sigma.sum(0) / weights.sum(0)).tolist()


def _has_bands(table: BandStatistics, centers: np.ndarray) -> bool:
    known = np.asarray(table.wavelength_nm)
    return known.shape == centers.shape and np.abs(np.sort(known) - np.sort(centers)).max() <= MATCH_TOLERANCE_NM


def _covers(table: BandStatistics, centers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return which bands lie within the table's ranges, bool (N,)."""
    low, high = np.asarray(table.stretches()).T[:, :, None]
    inside: np.ndarray = (low - widths / 2 <= centers) & (centers <= high + widths / 2)
    return np.logical_or.reduce(inside)


def interpolate(
    centers_nm: Sequence[float] | np.ndarray, known_nm: Sequence[float], values: Sequence[float]
) -> list[float]:
    """Interpolate statistics of known bands, in any order, along the wavelength; constant beyond their ends."""
    order = np.argsort(known_nm, kind="stable")
    return np.interp(centers_nm, np.asarray(known_nm)[order], np.asarray(values)[order]).tolist()


def bands_outside(description: EncoderDescription, centers: np.ndarray, widths: np.ndarray) -> str:
    """Say how many bands, centers and widths in nm, are outside of the trained ranges; empty if none is."""
    ranges = description.ranges_nm
    inside = np.zeros(len(centers), dtype=bool)
    for low, high in ranges:
        inside |= (centers >= low - widths / 2) & (centers <= high + widths / 2)
    if inside.all():
        return ""
    outside = centers[~inside]
    trained = ", ".join(f"{low:.0f} to {high:.0f}" for low, high in ranges)
    return (
        f"{len(outside)} of {len(centers)} bands, from {outside.min():.0f} to {outside.max():.0f} nm, are outside of "
        f"what this encoder was trained on, {trained} nm"
    )
