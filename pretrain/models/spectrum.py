"""What the channels of an image are: bands of a sensor, real or made up, for stems that work by wavelength."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WIDEST_SPACING_NM = 30.0
"""Largest distance between neighbors that a band stands for; beyond, bands are samples, not a spectrum."""

NARROWEST_SPACING_NM = 1e-3
"""Spacing of a band between two others of the same center, or alone."""


class TakesSpectrum:
    """A module whose features depend on what the bands of images are.

    Attributes:
        default: the bands of images whose spectrum is not given; see `set_default_spectrum`.
    """

    default: "Spectrum | None" = None


class Spectrum(NamedTuple):
    """Bands of the images of a batch, which is G groups of equally many consecutive samples.

    Attributes:
        center_nm, fwhm_nm: of the N bands of each group, in any order, float32 (G, N); a width of 0 is no band.
        response: float32 (G, N, C), weights that make the N bands from the C channels of an image; None where the
            channels are the bands themselves.
    """

    center_nm: Tensor
    fwhm_nm: Tensor
    response: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """Which bands there are, bool (G, N)."""
        return self.fwhm_nm > 0


def spectral_weights(center_nm: Tensor, present: Tensor) -> Tensor:
    """Return the quadrature weights of bands: half the distance to both neighbors, as shares of their sum.

    A sum over bands with these weights approximates a mean over wavelengths, so that missing bands, or twice as many,
    leave its scale as it is.

    Args:
        center_nm: float32 (G, N), in any order.
        present: bool (G, N); other bands have weight 0 and are nobody's neighbors.
    """
    centers, order = center_nm.masked_fill(~present, torch.inf).sort(-1)
    steps = centers.diff(dim=-1).nan_to_num(0.0, 0.0).clamp(max=WIDEST_SPACING_NM)
    spacing = torch.zeros_like(centers)
    spacing[:, 1:] += steps / 2
    spacing[:, :-1] += steps / 2
    spacing = torch.zeros_like(spacing).scatter(-1, order, spacing.clamp(min=NARROWEST_SPACING_NM)) * present
    return spacing / spacing.sum(-1, keepdim=True).clamp(min=NARROWEST_SPACING_NM)


Spectra = Spectrum | Sequence[Spectrum] | None
"""Of a batch, or of the batches of several image sizes; None for what the stem takes by default."""


def each_spectrum(spectra: Spectra, count: int) -> Sequence[Spectrum | None]:
    """Return the spectrum of each of ``count`` batches."""
    if spectra is None or isinstance(spectra, Spectrum):
        return [spectra] * count
    return spectra


def joined(spectra: Sequence[Spectrum | None]) -> Spectrum | None:
    """Return the spectrum of views of the same samples, one after the other: one group if it has no other bands."""
    first = spectra[0]
    if first is None or (first.response is None and len(first.center_nm) == 1):
        return first
    centers, widths, responses = zip(*(spectrum for spectrum in spectra if spectrum is not None), strict=True)
    return Spectrum(torch.cat(centers), torch.cat(widths), None if responses[0] is None else torch.cat(responses))


def shuffled(spectrum: Spectrum | None, order: Tensor) -> Spectrum | None:
    """Return the spectrum of images in another order (B,): each is a group, unless there is one for all."""
    if spectrum is None or len(spectrum.center_nm) == 1:
        return spectrum
    groups = order // (len(order) // len(spectrum.center_nm))
    centers, widths, response = spectrum
    return Spectrum(centers[groups], widths[groups], None if response is None else response[groups])


def spectrum_of(wavelength_nm: Sequence[float], fwhm_nm: Sequence[float]) -> Spectrum:
    """Return the spectrum of images that all have these bands."""
    centers, widths = (torch.tensor([list(values)], dtype=torch.float32) for values in (wavelength_nm, fwhm_nm))
    return Spectrum(centers, widths)
