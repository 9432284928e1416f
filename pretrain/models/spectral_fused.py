"""The spectral adapter's passes by Triton kernels (pretrain/kernels/stem.py), for products in half precision.

What is left to torch has a few numbers for each group or block of pixels. The norm of a layer goes to kernels as rows
of factors (`_norm_rows`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.kernels import stem, stem_backward, stem_moments, stem_weights
from pretrain.models.spectral_layers import (
    FirstLayer,
    FirstSums,
    LaterLayer,
    Layer,
    Saved,
    first_gradients,
    first_layer,
    later_gradients,
    later_layer,
)
from pretrain.models.spectral_moments import combined_moments, num_blocks, position_moments


def forward(pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> tuple[Saved, Tensor]:
    """Compute what the backward pass needs, and the features (G, R, 128)."""
    _, second, third = layers
    x = pixels.to(dtype).contiguous()
    first = first_layer(layers[0], x, dtype, _im2col_moments)
    length = second.positions(first.length)
    y2, blocks = stem.second_layer(x, _table(first), _padded(second.weight, dtype), second.bias.float(), length)
    later2 = later_layer(second, second.weight.to(dtype), y2, combined_moments(blocks, y2, stem.SMALL_BLOCK))
    weight = third.weight.to(dtype)
    y3, blocks = stem.third_layer(y2, _norm_rows(later2), weight, third.bias.float(), third.positions(length))
    later3 = later_layer(third, weight, y3, combined_moments(blocks, y3, stem.BLOCK))
    features = stem.mean_features(y3, _norm_rows(later3))
    return Saved(pixels, first, (later2, later3), (y2, y3)), features


def backward(saved: Saved, gradient: Tensor) -> list[Tensor]:
    """Return the gradients of weight, bias, scale and shift of each layer, given that of the features (G, R, 128)."""
    (second, third), (y2, y3) = saved.later, saved.ys
    norm2, norm3, d_features = _norm_rows(second), _norm_rows(third), gradient.contiguous()
    sums3 = _total(stem_backward.third_sums(d_features, y3, norm3))
    above = (d_features, y3, norm3, _mean_rows(third, sums3))
    d2, blocks = stem_backward.second_gradient(*above, third.weight, y2, norm2)
    sums2 = _total(blocks)
    d_third = _total(stem_weights.third_weights(*above, y2, norm2))
    x, table = saved.pixels.to(y2.dtype).contiguous(), _table(saved.first)
    above = (d2, y2, norm2, _mean_rows(second, sums2))
    d_second = _total(stem_weights.second_weights(x, table, *above))[:, : len(second.weight)]
    products = _total(stem_weights.first_sums(x, table, _padded(second.weight, y2.dtype), *above))
    gradients = (
        *first_gradients(saved.first, _first_sums(saved.first, products)),
        *later_gradients(second, d_second, sums2.transpose(0, 1)),
        *later_gradients(third, d_third, sums3.transpose(0, 1)),
    )
    return [group.sum(0, dtype=torch.float64) for group in gradients]


def _im2col_moments(pixels: Tensor, kernel: int, stride: int, length: int) -> tuple[Tensor, Tensor]:
    """Compute `im2col_moments` by a kernel."""
    windows = _total(stem_moments.window_moments(pixels, num_blocks(length)))[..., : stem_moments.USED]
    return position_moments(windows[:, :, -1], windows[:, :, : stem_moments.USED], kernel, stride, length)


def _table(first: FirstLayer) -> Tensor:
    """Shift the first layer's filters to where the taps of the second layer read them, (G, 64, 256)."""
    size, channels = first.folded.shape[1:]
    table = first.folded.new_zeros(len(first.folded), stem.WIDTH, stem.COLUMNS)
    for tap in range(stem.TAPS):
        row, column = tap * first.layer.stride, tap * channels
        table[:, row : row + size, column : column + channels] = first.folded
    table[:, -1, : stem.TAPS * channels] = first.offset.repeat(1, 1, stem.TAPS)[:, 0]
    return table


def _first_sums(first: FirstLayer, products: Tensor) -> FirstSums:
    """Add up over taps what the products (G, 64, 256) have where the table has filters and offsets."""
    taps = products[:, :, : stem.TAPS * first.folded.shape[2]].unflatten(2, (stem.TAPS, -1))
    rows = taps.unfold(1, first.layer.kernel, first.layer.stride)[:, : stem.TAPS]  # (G, taps of rows, taps, N, K)
    return FirstSums(rows.diagonal(dim1=1, dim2=2).sum(-1).mT, taps[:, -1].sum(1))


def _padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Extend the weights of the second layer, (7 x 32, 64), to the columns of the table."""
    return F.pad(weight.to(dtype), (0, 0, 0, stem.COLUMNS - len(weight)))


def _norm_rows(later: LaterLayer) -> Tensor:
    """Stack factor, offset, center and inverse of a norm, (G, 4, N)."""
    return torch.stack([later.factor, later.offset, later.center, later.inverse], 1)[:, :, 0, 0]


def _mean_rows(later: LaterLayer, sums: Tensor) -> Tensor:
    """Return what a norm with this call's statistics subtracts from a gradient, (G, 2, N); zeros otherwise.

    Args:
        sums: gradients of shift and scale, (G, 2, N), float64.
    """
    if later.layer.moments is not None:
        return torch.zeros_like(sums, dtype=torch.float32)
    means = (sums / later.count).float()
    return torch.stack([means[:, 0], means[:, 1] * later.inverse[:, 0, 0]], 1)


def _total(parts: Tensor) -> Tensor:
    """Add up blocks or shares, (G, parts, ...), in float64."""
    return parts.sum(1, dtype=torch.float64)
