"""Digital numbers to z-scores in one pass: eager torch takes six, the first of which makes them fp32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pretrain.kernels.launching import launch, operator
from shards.sensors.sensor import NODATA

BLOCK = 2048
MISSING = tl.constexpr(NODATA)


def launch_normalize(tiles: Tensor, mu: Tensor, sigma: Tensor, clip: float, dtype: torch.dtype) -> Tensor:
    """Compute (tiles - mu) / sigma per band, 0 where a value is missing, and cut the results to +-clip.

    Args:
        tiles: int16 (..., C, H, W), contiguous.
        mu, sigma: float32 (C,), or of tiles (N, C, H, W) of several sources (N * C,).
        clip: a limit within the range of ``dtype``.
        dtype: of the results.
    """
    tiles = tiles.contiguous()
    bands, pixels = len(mu), tiles.shape[-2] * tiles.shape[-1]
    scores = torch.empty_like(tiles, dtype=dtype)
    grid = (tiles.numel() // pixels, triton.cdiv(pixels, BLOCK))
    launch(_normalize, grid, tiles, mu, sigma, scores, clip, bands, pixels, BLOCK=BLOCK)
    return scores


normalize = operator("normalize")(launch_normalize)


@normalize.register_fake
def _(tiles: Tensor, mu: Tensor, sigma: Tensor, clip: float, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(tiles, dtype=dtype, memory_format=torch.contiguous_format)


@triton.jit
def _normalize(tiles, mu, sigma, scores, clip, bands, pixels, BLOCK: tl.constexpr):
    image, block = tl.program_id(0), tl.program_id(1)  # an image is one band of one tile
    center, scale = tl.load(mu + image % bands), tl.load(sigma + image % bands)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    place = image.to(tl.int64) * pixels + pixel
    values = tl.load(tiles + place, mask=inside, other=0)
    score = (values.to(tl.float32) - center) / scale
    score = tl.minimum(tl.maximum(tl.where(values == MISSING, 0.0, score), -clip), clip)
    tl.store(scores + place, score, mask=inside)
