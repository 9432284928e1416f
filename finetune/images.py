"""From a task's tiles to what an encoder takes: the bands of one sensor to those of another, and normalisation."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.models import EncoderDescription, Normaliser
from shards.errors import ConfigError
from shards.sensors import MATCH_TOLERANCE_NM, NODATA, Sensor

SIGMA_OF_FWHM = 1 / (2 * np.sqrt(2 * np.log(2)))


class ImageInput(nn.Module):
    """Tiles of a sensor to an encoder's input.

    Args:
        mu, sigma: per-band statistics of digital numbers, of the bands after resampling.
        clip: normalised values are cut at +-clip.
        response: (bands of the encoder, bands of the sensor) to resample with, see `response_matrix`.

    Attributes:
        bands: that a tile has.
    """

    response: Tensor | None
    covered: Tensor | None

    def __init__(
        self, mu: Sequence[float], sigma: Sequence[float], clip: float | None, response: np.ndarray | None = None
    ) -> None:
        super().__init__()
        self.normalise = Normaliser(mu, sigma, clip)
        matrix = None if response is None else torch.from_numpy(response.astype(np.float32))
        self.bands = len(mu) if response is None else response.shape[1]
        self.register_buffer("response", matrix, persistent=False)
        self.register_buffer("covered", None if matrix is None else matrix.sum(1) > 0, persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Digital numbers (B, bands, H, W), int16 or float32, to normalised float32; what is missing becomes 0."""
        if self.response is None or self.covered is None:
            return self.normalise(tiles)
        missing = (tiles == NODATA).any(1, keepdim=True)
        values = torch.einsum("ob,nbhw->nohw", self.response, tiles.float())
        absent = missing | ~self.covered.view(1, -1, 1, 1)
        return self.normalise(values.masked_fill(absent, float(NODATA)))


def response_matrix(
    wanted_nm: Sequence[float], wanted_fwhm: Sequence[float], bands_nm: Sequence[float], bands_fwhm: Sequence[float]
) -> np.ndarray:
    """Weights (wanted, bands) that resample spectra by Gaussian spectral responses; each row adds up to 1.

    A wanted band is the mean of the given ones under its own Gaussian, less what their widths blur already
    (variances subtract); one narrower than those around it becomes linear interpolation. Rows are zero for bands
    whose centre lies more than half their width beyond the sensor's ends.
    """
    wanted, bands = np.asarray(wanted_nm, float), np.asarray(bands_nm, float)
    order = np.argsort(bands, kind="stable")
    spacing = np.empty(len(bands))
    spacing[order] = np.gradient(bands[order]) if len(bands) > 1 else 1.0
    matrix = np.zeros((len(wanted), len(bands)))
    for row, (centre, width) in enumerate(zip(wanted, wanted_fwhm, strict=True)):
        if not bands.min() - width / 2 <= centre <= bands.max() + width / 2:
            continue
        nearest = int(np.abs(bands - centre).argmin())
        variance = (width * SIGMA_OF_FWHM) ** 2 - (bands_fwhm[nearest] * SIGMA_OF_FWHM) ** 2
        if variance > (0.5 * spacing[nearest]) ** 2:
            weights = np.exp(-0.5 * (bands - centre) ** 2 / variance) * spacing
        else:
            weights = _interpolation(centre, bands, order)
        matrix[row] = weights / weights.sum()
    return matrix


def _interpolation(centre: float, bands: np.ndarray, order: np.ndarray) -> np.ndarray:
    weights = np.zeros(len(bands))
    place = np.interp(centre, bands[order], np.arange(len(bands)))
    below = int(place)
    above = min(below + 1, len(bands) - 1)
    weights[order[below]] += 1 - (place - below)
    weights[order[above]] += place - below
    return weights


def check_same_bands(description: EncoderDescription, sensor: Sensor) -> None:
    """Raise ConfigError where an encoder's bands are not those of the tiles."""
    own, theirs = np.asarray(description.wavelength_nm), np.asarray(sensor.wavelength_nm)
    if own.shape == theirs.shape and (not len(own) or np.abs(own - theirs).max() <= MATCH_TOLERANCE_NM):
        return
    raise ConfigError(
        f"the encoder is for {len(own)} bands of {description.sensor}, the tiles have {len(theirs)} of {sensor.name}: "
        "set data.bands=native to train on them as they are, or data.bands=resample for the encoder's"
    )
