"""Digital numbers to model input: z-score per band, on the device, from int16."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shards.sensors.sensor import NODATA


class Normalizer(nn.Module):
    """(x - mu) / sigma per band, float32.

    A missing value becomes 0, the band's mean: the published pipeline lets -32768 through as an extreme.

    Args:
        mu, sigma: per-band mean and standard deviation of digital numbers.
        clip: results beyond +-clip are cut to it; None for none.
    """

    mu: Tensor
    sigma: Tensor

    def __init__(self, mu: Sequence[float], sigma: Sequence[float], clip: float | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mu", torch.tensor(list(mu), dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("sigma", torch.tensor(list(sigma), dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Map int16 (..., bands, height, width) to float32 of the same shape."""
        return self._normalize(tiles, self.mu, self.sigma)

    def spectra(self, pixels: Tensor) -> Tensor:
        """Map int16 (..., bands) to float32 of the same shape."""
        return self._normalize(pixels, self.mu.flatten(), self.sigma.flatten())

    def _normalize(self, values: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        scores = (values - mu).div_(sigma).masked_fill_(values == NODATA, 0.0)
        return scores if self.clip is None else scores.clamp_(-self.clip, self.clip)
