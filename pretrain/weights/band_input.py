"""How images of some bands become the input of an encoder: picked from more, or taken as they are by wavelength."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pretrain.console import log
from pretrain.models.normalize import Normalizer
from pretrain.models.spectrum import Spectrum, spectrum_of
from pretrain.weights.description import EncoderDescription
from pretrain.weights.resample import centers_and_widths


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

    Means and standard deviations are interpolated linearly along the wavelength between those of the encoder's own
    bands; beyond their ends, they are those of the nearest band. A line on stderr warns of bands outside of the
    ranges that the encoder was trained on.

    Raises:
        WeightsError: not one number above 0 for each band.
    """
    centers, widths = centers_and_widths(wavelengths_nm, fwhm_nm)
    _warn_outside(description, centers, widths)
    mu, sigma = (
        interpolate(centers, description.wavelength_nm, value) for value in (description.mu, description.sigma)
    )
    return BandInput(Normalizer(mu, sigma, description.clip), None, spectrum_of(centers.tolist(), widths.tolist()))


def interpolate(
    centers_nm: Sequence[float] | np.ndarray, known_nm: Sequence[float], values: Sequence[float]
) -> list[float]:
    """Interpolate statistics of known bands, in any order, along the wavelength; constant beyond their ends."""
    order = np.argsort(known_nm, kind="stable")
    return np.interp(centers_nm, np.asarray(known_nm)[order], np.asarray(values)[order]).tolist()


def _warn_outside(description: EncoderDescription, centers: np.ndarray, widths: np.ndarray) -> None:
    ranges = description.ranges_nm
    inside = np.zeros(len(centers), dtype=bool)
    for low, high in ranges:
        inside |= (centers >= low - widths / 2) & (centers <= high + widths / 2)
    if not inside.all():
        outside = centers[~inside]
        trained = ", ".join(f"{low:.0f} to {high:.0f}" for low, high in ranges)
        log(
            f"WARNING: {len(outside)} of {len(centers)} bands, from {outside.min():.0f} to {outside.max():.0f} nm, are "
            f"outside of what this encoder was trained on, {trained} nm: leave them out"
        )
