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
        mu, sigma: mean and standard deviation of digital numbers per band, (C,), or per source and band, (S, C).
        clip: results beyond +-clip are cut to it; None for none.
    """

    mu: Tensor
    sigma: Tensor

    def __init__(
        self, mu: Sequence[float] | Tensor, sigma: Sequence[float] | Tensor, clip: float | None = None
    ) -> None:
        super().__init__()
        self.clip = clip
        for name, values in (("mu", mu), ("sigma", sigma)):
            table = torch.as_tensor(values, dtype=torch.float32)
            table = table[0] if table.dim() == 2 and len(table) == 1 else table
            self.register_buffer(name, table.clone()[..., None, None], persistent=False)

    @property
    def num_sources(self) -> int:
        """S, number of tables."""
        return 1 if self.mu.dim() == 3 else len(self.mu)

    def constants(self, sources: Tensor | None = None) -> tuple[Tensor, Tensor, float]:
        """Return means and standard deviations, (C,) or of images of several sources (B, C), and the results' limit."""
        mu, sigma = self.tables(sources)
        return mu[..., 0, 0], sigma[..., 0, 0], math.inf if self.clip is None else self.clip

    def tables(self, sources: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the bands, (C, 1, 1) of one source, else (B, C, 1, 1).

        Args:
            sources: of each image, int64 (B,); None where there is one source.
        """
        if self.num_sources == 1:
            return self.mu, self.sigma
        assert sources is not None, "several sources: say which one each image is of"
        return self.mu[sources], self.sigma[sources]

    def forward(self, tiles: Tensor, dtype: torch.dtype = torch.float32, sources: Tensor | None = None) -> Tensor:
        """Map int16 (..., bands, height, width) to the same shape.

        Args:
            dtype: of the results; those beyond its range are cut to it.
            sources: of tiles (B, bands, height, width), int64 (B,); None where there is one source.
        """
        mu, sigma = self.tables(sources)
        if not usable(tiles):
            return self._normalize(tiles, mu, sigma, dtype)
        from pretrain.kernels.normalize import normalize  # imports Triton

        clip = math.inf if self.clip is None else self.clip
        return normalize(tiles, mu.flatten(), sigma.flatten(), min(clip, torch.finfo(dtype).max), dtype)

    def spectra(self, pixels: Tensor, sources: Tensor | None = None) -> Tensor:
        """Map int16 (..., bands), or of several sources (B, ..., bands), to float32 of the same shape."""
        mu, sigma = (table[..., 0, 0] for table in self.tables(sources))
        if mu.dim() == 2:
            mu, sigma = (table.view(len(table), *[1] * (pixels.dim() - 2), -1) for table in (mu, sigma))
        return self._normalize(pixels, mu, sigma, torch.float32)

    def _normalize(self, values: Tensor, mu: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        scores = (values - mu).div_(sigma).masked_fill_(values == NODATA, 0.0)
        limit = min(math.inf if self.clip is None else self.clip, torch.finfo(dtype).max)
        return (scores if limit == torch.finfo(scores.dtype).max else scores.clamp_(-limit, limit)).to(dtype)
