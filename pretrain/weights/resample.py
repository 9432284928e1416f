"""Resample spectra of any sensor to the bands of an encoder."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pretrain.weights.description import WeightsError
from pretrain.weights.images import band_centers, band_numbers, check_bands, scale_of, to_batch, to_tensor, value_range
from shards.sensors.band_table import NARROWEST
from shards.sensors.resampling import response_matrix
from shards.sensors.sensor import NODATA
from shards.sensors.spectrum import widths_by_spacing

FEWEST_COVERED = 0.25
"""The smallest share of its bands that an encoder needs."""

ENOUGH = 0.5
"""A band is missing if no more than this share of its weights falls on measured bands."""


class Bands(Protocol):
    """Anything with bands: the description of an encoder, or a sensor."""

    @property
    def wavelength_nm(self) -> Any: ...
    @property
    def fwhm_nm(self) -> Any: ...


def resample(cube: Any, wavelengths_nm: Any, fwhm_nm: Any = None, *, to: Any) -> Any:
    """Resample images to the bands of an encoder, by Gaussian spectral responses.

    >>> features = encoder.encode(spectralforge.resample(cube, wavelengths_nm, fwhm_nm, to=encoder))

    Args:
        cube: digital numbers (reflectance x 10000) or reflectance, (bands, height, width) or (B, bands, height, width):
            an array or tensor of any number type. Masked pixels, NaN, infinities and -32768 are missing.
        wavelengths_nm: band centers of the cube in nm or micrometers, in any order.
        fwhm_nm: widths of the bands in the same unit; None takes the distance to the nearer neighbor.
        to: an encoder of ``load_encoder``, or any object with ``wavelength_nm`` and ``fwhm_nm``.

    Returns:
        Digital numbers of the same rank, float32, on the cube's device: a tensor (differentiable) of a tensor, else an
        array. NaN, which ``encode`` treats as missing, marks pixels without a measurement and bands that the cube
        doesn't cover: beyond its ends and in its gaps.

    Raises:
        WeightsError: bands and wavelengths don't match, values can't be reflectance, or the bands cover less
            than a quarter of the encoder's.
    """
    batch, target = to_batch(cube), getattr(to, "description", to)
    matrix = _responses(target, *centers_and_widths(wavelengths_nm, fwhm_nm))
    check_bands(batch, matrix.shape[1], f"{matrix.shape[1]} wavelengths were given; give one per band")
    values = to_tensor(batch)
    scale = scale_of([value_range(values)])
    value_range(values, scale)
    mixed, missing = apply_responses(values, torch.from_numpy(matrix).to(values.device), scale)
    result = mixed.masked_fill(missing, torch.nan)
    if np.ndim(cube) == 3:
        result = result[0]
    return result if isinstance(batch, Tensor) else result.numpy()


def apply_responses(values: Tensor, responses: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mix bands (B, bands, H, W) of digital numbers by weights (wanted, bands), whose rows add up to 1 or 0.

    Where some of the bands are missing, the others take over their weight if they have most of it.

    Returns:
        float32 (B, wanted, H, W), and a bool mask of the same shape: True where a value is missing.
    """
    responses = responses.float()
    absent = values == NODATA
    mixed = torch.einsum("ob,nbhw->nohw", responses, (values * scale).float().masked_fill(absent, 0.0))
    weight = torch.einsum("ob,nbhw->nohw", responses, (~absent).float())
    missing = weight <= ENOUGH
    partly = absent.any(1, keepdim=True) & ~missing
    return torch.where(partly, mixed / weight.masked_fill(missing, 1.0), mixed), missing


def centers_and_widths(wavelengths_nm: Any, fwhm_nm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return band centers and widths in nm, given in nm or micrometers; see `resample`.

    Raises:
        WeightsError: not one number above 0 for each band.
    """
    centers = band_centers(wavelengths_nm)
    if fwhm_nm is None:
        if len(centers) < 2:
            raise WeightsError("fwhm_nm: needed for a single band")
        return centers, widths_by_spacing(centers)
    widths = band_numbers(fwhm_nm, "fwhm_nm")
    if widths.shape != centers.shape:
        raise WeightsError(f"fwhm_nm: {len(widths)} widths for {len(centers)} wavelengths: give one per band")
    return centers, widths * 1000 if (widths < NARROWEST * centers).all() else widths


def _responses(target: Bands, centers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """float64 (wanted, bands), see `response_matrix`."""
    target_nm, target_widths = getattr(target, "wavelength_nm", None), getattr(target, "fwhm_nm", None)
    if target_nm is None or target_widths is None or not len(target_nm) or len(target_nm) != len(target_widths):
        raise WeightsError(
            "resample: 'to' doesn't say which bands it takes: give an encoder whose file does "
            "(spectralforge-convert --sensor)"
        )
    matrix = response_matrix(target_nm, target_widths, centers, widths)
    covered = int(matrix.any(1).sum())
    if covered < FEWEST_COVERED * len(target_nm):
        raise WeightsError(
            f"resample: bands from {centers.min():g} to {centers.max():g} nm cover {covered} of {len(target_nm)} bands "
            f"from {min(target_nm):g} to {max(target_nm):g} nm: too few for this encoder"
        )
    return matrix
