"""Digital numbers to model input: z-score per band, on the device, from int16."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.kernels.launching import usable
from shards.sensors.sensor import NODATA


class Normalizer(nn.Module):
    """(x - mu) / sigma per band.

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

    @property
    def constants(self) -> tuple[Tensor, Tensor, float]:
        """Means and standard deviations (C,), and the limit of results."""
        return self.mu.flatten(), self.sigma.flatten(), math.inf if self.clip is None else self.clip

    def forward(self, tiles: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Map int16 (..., bands, height, width) to the same shape.

        Args:
            dtype: of the results; those beyond its range are cut to it.
        """
        if not usable(tiles):
            return self._normalize(tiles, self.mu, self.sigma, dtype)
        from pretrain.kernels.normalize import normalize  # imports Triton

        mu, sigma, clip = self.constants
        return normalize(tiles, mu, sigma, min(clip, torch.finfo(dtype).max), dtype)

    def spectra(self, pixels: Tensor) -> Tensor:
        """Map int16 (..., bands) to float32 of the same shape."""
        return self._normalize(pixels, self.mu.flatten(), self.sigma.flatten(), torch.float32)

    def _normalize(self, values: Tensor, mu: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        scores = (values - mu).div_(sigma).masked_fill_(values == NODATA, 0.0)
        limit = min(math.inf if self.clip is None else self.clip, torch.finfo(dtype).max)
        return (scores if limit == torch.finfo(scores.dtype).max else scores.clamp_(-limit, limit)).to(dtype)
