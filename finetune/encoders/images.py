"""Conversion of a task's tiles to the encoder's input: spectral resampling between sensors, and normalization."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.models.normalize import Normalizer
from pretrain.weights.description import EncoderDescription
from pretrain.weights.resample import apply_responses
from shards.errors import ConfigError
from shards.sensors.sensor import MATCH_TOLERANCE_NM, NODATA, Sensor


class ImageInput(nn.Module):
    """Converts tiles of a sensor to an encoder's input.

    Args:
        mu, sigma: per-band statistics of the digital numbers after resampling.
        clip: normalized values are cut at +-clip.
        response: resampling matrix (bands of the encoder, bands of the sensor), see `response_matrix`.

    Attributes:
        bands: number of bands of a tile.
    """

    response: Tensor | None

    def __init__(
        self, mu: Sequence[float], sigma: Sequence[float], clip: float | None, response: np.ndarray | None = None
    ) -> None:
        super().__init__()
        self.normalize = Normalizer(mu, sigma, clip)
        matrix = None if response is None else torch.from_numpy(response.astype(np.float32))
        self.bands = len(mu) if response is None else response.shape[1]
        self.register_buffer("response", matrix, persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Normalize digital numbers (B, bands, H, W), int16 or float32, to float32; missing values become 0."""
        if self.response is None:
            return self.normalize(tiles)
        mixed, missing = apply_responses(tiles, self.response)
        return self.normalize(mixed.masked_fill(missing, float(NODATA)))


def check_same_bands(description: EncoderDescription, sensor: Sensor) -> None:
    """Raise ConfigError if an encoder's bands differ from those of the tiles."""
    encoder_nm, tile_nm = np.asarray(description.wavelength_nm), np.asarray(sensor.wavelength_nm)
    if encoder_nm.shape == tile_nm.shape and (
        not len(encoder_nm) or np.abs(encoder_nm - tile_nm).max() <= MATCH_TOLERANCE_NM
    ):
        return
    raise ConfigError(
        f"the encoder takes {len(encoder_nm)} bands of {description.sensor}, but the tiles have {len(tile_nm)} of "
        f"{sensor.name}: "
        "set data.bands=native to train on the tiles' bands, or data.bands=resample to resample them to the encoder's"
    )
