"""Moments of a batch-norm group: those of im2col of the spectra, and those of a layer's output, part by part.

Sums within a part are taken in fp32 (or the inputs' dtype, if wider), sums of parts in float64.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.models.compilation import compilable
from pretrain.models.spectral_parts import Part, split_parts, widened

POSITIONS = 5
"""Positions of a block: with kernel 7 and stride 5, the 27 bands that they read cost less than their 5 x 7 inputs."""

CHUNK = 256
"""Pixels whose products are summed in fp32."""


def im2col_moments(pixels: Tensor, kernel: int, stride: int, length: int) -> tuple[Tensor, Tensor]:
    """Sum the rows of im2col over the pixels and positions of each group, and their outer products.

    Neighboring bands are nearly alike, and a filter may take their difference. So the products are those of a block's
    first band and the differences of its neighbors, which lose nothing to rounding; a cumulative sum in float64 returns
    to bands.

    Args:
        pixels: (G, R, bands).
        kernel, stride: of the convolution; padding is 1.
        length: L, the number of positions.

    Returns:
        Sums (G, K) and products (G, K, K), float64.
    """
    groups, blocks, size = len(pixels), num_blocks(length), (POSITIONS - 1) * stride + kernel
    sums = pixels.new_zeros(groups, blocks, size, dtype=torch.float64)
    products = pixels.new_zeros(groups, blocks, size, size, dtype=torch.float64)
    for part in split_parts(pixels):
        steps = _steps(part.of(pixels), size, POSITIONS * stride, blocks)
        sums[part.groups].add_(steps.sum(3).sum(1, dtype=torch.float64))
        flat = steps.flatten(0, 2)
        grams = (flat.mT @ flat).unflatten(0, steps.shape[:3])
        products[part.groups].add_(grams.sum(1, dtype=torch.float64))
    return position_moments(sums, products, kernel, stride, length)


def num_blocks(length: int) -> int:
    """Return the number of blocks of L positions."""
    return -(-length // POSITIONS)


def _steps(pixels: Tensor, size: int, hop: int, blocks: int) -> Tensor:
    """Return the first band of each block and the differences of its neighbors, (G, chunks, blocks, chunk, size)."""
    _, count, bands = pixels.shape
    chunk = min(CHUNK, count)
    padded = F.pad(widened(pixels), (1, (blocks - 1) * hop + size - bands - 1, 0, -count % chunk))
    windows = padded.unflatten(1, (-1, chunk)).unfold(3, size, hop).transpose(2, 3)
    return torch.cat([windows[..., :1], windows.diff()], -1)


def position_moments(sums: Tensor, products: Tensor, kernel: int, stride: int, length: int) -> tuple[Tensor, Tensor]:
    """Add up over positions what blocks have of first bands and differences.

    Args:
        sums, products: (G, blocks, bands of a block), and of pairs of them; float64.
        kernel, stride, length: see `im2col_moments`.
    """
    values = sums.cumsum(-1).unfold(2, kernel, stride)  # (G, blocks, positions, K)
    pairs = products.cumsum(-1).cumsum(-2).unfold(2, kernel, stride).unfold(3, kernel, stride)
    outer = pairs.diagonal(dim1=2, dim2=3).movedim(-1, 2)  # (G, blocks, positions, K, K)
    return values.flatten(1, 2)[:, :length].sum(1), outer.flatten(1, 2)[:, :length].sum(1)


@compilable
def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the sum of squared deviations of each group of y (G, R, L, N), (G, N)."""
    rows = widened(y)
    mean = rows.mean((1, 2), keepdim=True)
    return mean[:, 0, 0], (rows - mean).square_().sum((1, 2))


class RunningMoments:
    """Mean and variance of y (G, R, L, N) by group, from its parts in order (Chan, Golub and LeVeque 1983)."""

    def __init__(self, y: Tensor) -> None:
        self._count = y.shape[1] * y.shape[2]
        self._mean, self._squares = y.new_zeros(2, y.shape[0], y.shape[3], dtype=torch.float64)

    def add(self, part: Part, y: Tensor) -> None:
        """Add a part of y."""
        mean, squares = _moments(y)
        before, count = part.pixels.start * y.shape[2], y.shape[1] * y.shape[2]
        apart = mean.double() - self._mean[part.groups]
        self._squares[part.groups].add_(squares).add_(apart.square(), alpha=before * count / (before + count))
        self._mean[part.groups].add_(apart, alpha=count / (before + count))

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, (G, N), float64."""
        return self._mean, self._squares / self._count


def combined_moments(blocks: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Combine moments of blocks of pixels.

    Args:
        blocks: of each block of y's pixels (G, R, L, N) the mean and the squared deviations, (G, B, 2, N).
        size: pixels of a block; the last one has the rest.

    Returns:
        Mean and biased variance, (G, N), float64.
    """
    pixels, length = y.shape[1:3]
    last = pixels - (blocks.shape[1] - 1) * size
    means, squares = blocks.double().unbind(2)
    total = size * means.sum(1) + (last - size) * means[:, -1]
    mean = total / pixels
    apart = (means - mean[:, None]).square()
    between = size * apart.sum(1) + (last - size) * apart[:, -1]
    return mean, (squares.sum(1) / length + between) / pixels
