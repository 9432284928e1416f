"""Properties derived from band centers: units, gaps, widths, and the bands to show as red, green and blue."""

from collections.abc import Sequence

import numpy as np

MICROMETERS_BELOW = 100.0
"""Centers below this are in micrometers: no imaging spectrometer has bands at less than 100 nm or beyond 100 um."""

RGB_NM = (641.0, 556.0, 468.0)
"""Wavelengths of a picture's red, green and blue."""

COLOR_TOLERANCE_NM = 60.0
"""Largest distance of a band from the wavelength of the color that it shows."""

GAP_FACTOR = 3.0
"""A gap is wider than this multiple of the median step between bands."""


def to_nanometers(centers: np.ndarray) -> np.ndarray:
    """Convert band centers in nm or micrometers to nm; ``MICROMETERS_BELOW`` decides the unit."""
    finite = centers[np.isfinite(centers)]
    return centers * 1000.0 if len(finite) and finite.max() < MICROMETERS_BELOW else centers


def rgb_positions(wavelength_nm: Sequence[float]) -> tuple[int, int, int]:
    """Return the positions of the bands to show as red, green and blue.

    These are the bands nearest to the colors; a sensor without such bands (shortwave or thermal infrared) uses three
    bands spread over its range, with the longest wavelength as red.
    """
    centers = np.asarray(wavelength_nm, dtype=np.float64)
    distance = np.abs(centers[:, None] - RGB_NM)
    nearest = distance.argmin(0)
    if distance.min(0).max() > COLOR_TOLERANCE_NM or len(set(nearest.tolist())) < 3:
        count = len(centers)
        nearest = np.argsort(centers, kind="stable")[[5 * count // 6, count // 2, count // 6]]
    red, green, blue = (int(band) for band in nearest)
    return red, green, blue


def gaps(wavelength_nm: Sequence[float] | np.ndarray, fwhm_nm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Find gaps where bands were left out, such as those of water vapor.

    Args:
        wavelength_nm, fwhm_nm: center and width of each band, in ascending order of wavelength.

    Returns:
        int64: positions of the bands after a gap: a step that is more than ``GAP_FACTOR`` times the median step and
        wider than both bands.
    """
    steps, widths = np.diff(np.asarray(wavelength_nm, float)), np.asarray(fwhm_nm, float)
    if not len(steps):
        return np.zeros(0, dtype=np.int64)
    wide = (steps > GAP_FACTOR * np.median(steps)) & (steps > np.maximum(widths[1:], widths[:-1]))
    return np.flatnonzero(wide) + 1


def widths_by_spacing(wavelength_nm: np.ndarray) -> np.ndarray:
    """Estimate unknown FWHM as the distance to the nearer neighbor, for two or more bands in any order."""
    order = np.argsort(wavelength_nm, kind="stable")
    steps = np.diff(wavelength_nm[order])
    widths = np.empty(len(wavelength_nm))
    widths[order] = np.minimum(np.append(steps, np.inf), np.insert(steps, 0, np.inf))
    return widths
