"""Resampling of spectra from one sensor's bands to another's with Gaussian spectral responses."""

from collections.abc import Sequence

import numpy as np

from shards.sensors.spectrum import gaps

Values = Sequence[float] | np.ndarray
SIGMA_OF_FWHM = 1 / (2 * np.sqrt(2 * np.log(2)))


def response_matrix(wanted_nm: Values, wanted_fwhm: Values, bands_nm: Values, bands_fwhm: Values) -> np.ndarray:
    """Return weights (wanted, bands) that resample spectra by Gaussian spectral responses; each row sums to 1.

    A wanted band is the mean of the given bands weighted by its Gaussian, whose variance is reduced by that of the
    given bands; a band narrower than the given ones is interpolated linearly. Rows are zero for bands whose center lies
    more than half their width beyond the sensor's range, or in a gap between its bands (shards/sensors/spectrum.py):
    spectra are not extrapolated.

    Args:
        wanted_nm, wanted_fwhm: centers and widths of the wanted bands in nm, in any order.
        bands_nm, bands_fwhm: centers and widths of the given bands in nm, in any order.
    """
    bands, widths = np.asarray(bands_nm, float), np.asarray(bands_fwhm, float)
    order = np.argsort(bands, kind="stable")
    matrix = np.zeros((len(wanted_nm), len(bands)))
    stretches = np.split(order, gaps(bands[order], widths[order]))
    for row, (center, width) in enumerate(zip(wanted_nm, wanted_fwhm, strict=True)):
        near = min(stretches, key=lambda stretch: max(bands[stretch[0]] - center, center - bands[stretch[-1]]))
        if bands[near[0]] - width / 2 <= center <= bands[near[-1]] + width / 2:
            matrix[row, near] = _weights(center, width, bands[near], widths[near])
    return matrix


def _weights(center: float, width: float, bands: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the weights of ascending bands without a gap; they sum to 1."""
    spacing = np.gradient(bands) if len(bands) > 1 else np.ones(1)
    nearest = int(np.abs(bands - center).argmin())
    variance = (width * SIGMA_OF_FWHM) ** 2 - (widths[nearest] * SIGMA_OF_FWHM) ** 2
    if variance > (0.5 * spacing[nearest]) ** 2:
        exponents = -0.5 * (bands - center) ** 2 / variance
        weights = np.exp(exponents - exponents.max()) * spacing  # beyond the ends, all of them may be close to 0
        return weights / weights.sum()
    weights = np.zeros(len(bands))
    position = float(np.interp(center, bands, np.arange(len(bands))))
    below = int(position)
    weights[below] += 1 - (position - below)
    weights[min(below + 1, len(bands) - 1)] += position - below
    return weights
