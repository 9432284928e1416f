"""What follows from band centers alone: units, gaps, widths, and which bands to show as red, green and blue."""

from collections.abc import Sequence

import numpy as np

MICROMETERS_BELOW = 100.0
"""Centers below this are in micrometers: no imaging spectrometer has bands at less than 100 nm or beyond 100 um."""

RGB_NM = (641.0, 556.0, 468.0)
"""Where a picture's red, green and blue are taken."""

COLOR_TOLERANCE_NM = 60.0
"""A band farther from red, green or blue than this doesn't show that color."""

GAP_FACTOR = 3.0
"""A gap is wider than so many times the usual step from band to band."""


def to_nanometers(centers: np.ndarray) -> np.ndarray:
    """Band centers or widths in nm, of those in nm or micrometers, told by ``MICROMETERS_BELOW``."""
    finite = centers[np.isfinite(centers)]
    return centers * 1000.0 if len(finite) and finite.max() < MICROMETERS_BELOW else centers


def rgb_positions(wavelength_nm: Sequence[float]) -> tuple[int, int, int]:
    """Positions of the bands to show as red, green and blue.

    Those nearest to these colors; without bands there (shortwave or thermal infrared) three bands spread over the
    range, the longest wavelengths as red.
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
    """Where bands were left out, as those of water vapor are.

    Args:
        wavelength_nm, fwhm_nm: of each band, ascending by wavelength.

    Returns:
        int64: positions of the bands behind a gap: a step that is more than ``GAP_FACTOR`` times the median one and
        wider than both bands.
    """
    steps, widths = np.diff(np.asarray(wavelength_nm, float)), np.asarray(fwhm_nm, float)
    if not len(steps):
        return np.zeros(0, dtype=np.int64)
    wide = (steps > GAP_FACTOR * np.median(steps)) & (steps > np.maximum(widths[1:], widths[:-1]))
    return np.flatnonzero(wide) + 1


def widths_by_spacing(wavelength_nm: np.ndarray) -> np.ndarray:
    """FWHM where it is unknown: the distance to the nearer neighbor, for bands of two and more, in any order."""
    order = np.argsort(wavelength_nm, kind="stable")
    steps = np.diff(wavelength_nm[order])
    widths = np.empty(len(wavelength_nm))
    widths[order] = np.minimum(np.append(steps, np.inf), np.insert(steps, 0, np.inf))
    return widths
