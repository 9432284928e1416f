"""The spectral adapter's passes in eager torch, a few pixels at a time (see spectral_layers.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.models.spectral_layers import (
    FirstSums,
    LaterLayer,
    Layer,
    Saved,
    col2im,
    first_gradients,
    first_layer,
    im2col,
    later_gradients,
    later_layer,
    norm_gradient,
    relu_gradient,
)
from pretrain.models.spectral_moments import RunningMoments, im2col_moments
from pretrain.models.spectral_parts import Part, split_parts, widened


def forward(pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> tuple[Saved, Tensor]:
    """Compute what the backward pass needs, and the features (G, R, N of the last layer)."""
    saved = Saved(pixels, first_layer(layers[0], pixels, dtype, im2col_moments), (), ())
    for layer in layers[1:]:
        saved = _add_layer(saved, layer, dtype)
    top = len(saved.later)
    features = torch.cat([_output(saved, top, part).mean(2).flatten(0, 1) for part in split_parts(pixels)])
    return saved, features.view(*pixels.shape[:2], -1)


def _add_layer(saved: Saved, layer: Layer, dtype: torch.dtype) -> Saved:
    """Compute the convolution of one more layer, and the statistics of its norm."""
    weight, bias, pixels, number = layer.weight.to(dtype), layer.bias.to(dtype), saved.pixels, len(saved.later)
    y = bias.new_empty(*pixels.shape[:2], layer.positions(saved.layers[-1].length), len(bias))
    moments = RunningMoments(y)
    for part in split_parts(pixels):
        rows = part.of(y)
        columns = im2col(_output(saved, number, part), layer)
        torch.addmm(bias, columns.flatten(0, 2), weight, out=rows.flatten(0, 2))
        if layer.moments is None:
            moments.add(part, rows)
    later = later_layer(layer, weight, y, moments.values)
    return Saved(pixels, saved.first, (*saved.later, later), (*saved.ys, y))


def _output(saved: Saved, number: int, part: Part) -> Tensor:
    """Compute the output of layer ``number`` for a part of the pixels, (G, R, L, N)."""
    if number == 0:
        return saved.first.output(part, saved.pixels)
    return saved.later[number - 1].output(part, saved.ys[number - 1])


@dataclass(frozen=True)
class LaterSums:
    """d (G, R, L, N), the gradient of a ReLU's input, and its sums: those of shift and scale, (2, G, N), float64."""

    d: Tensor
    sums: Tensor


def _zero_sums(saved: Saved, number: int) -> FirstSums | LaterSums:
    """Make the accumulators of layer ``number``."""
    if number == 0:
        return FirstSums(torch.zeros_like(saved.first.folded, dtype=torch.float64), torch.zeros_like(saved.first.mean))
    y, mean = saved.ys[number - 1], saved.later[number - 1].mean
    return LaterSums(torch.empty_like(y), mean.new_zeros(2, *mean.shape))


def _accumulate(saved: Saved, number: int, sums: FirstSums | LaterSums, part: Part, z: Tensor, dz: Tensor) -> None:
    """Add a part of the output of layer ``number`` and its gradient, (G, R, L, N), to its accumulators."""
    if isinstance(sums, FirstSums):
        d = torch.ops.aten.threshold_backward(dz, z, 0).flatten(1, 2)
        sums.product[part.groups].add_(saved.first.im2col(part.of(saved.pixels)).flatten(1, 2).mT @ d)
        sums.d_shift[part.groups].add_(widened(d).sum(1))
    else:
        later, y = saved.later[number - 1], part.of(saved.ys[number - 1])
        d, both = relu_gradient(dz, z, y, later.center[part.groups], later.inverse[part.groups])
        sums.sums[:, part.groups].add_(both)
        part.of(sums.d).copy_(d)


def backward(saved: Saved, gradient: Tensor) -> list[Tensor]:
    """Return the gradients of weight, bias, scale and shift of each layer, given that of the features (G, R, N)."""
    top = len(saved.later)
    length = saved.later[-1].length
    above = _zero_sums(saved, top)
    for part in split_parts(saved.pixels):
        d_features = part.of(gradient)[:, :, None] / length
        _accumulate(saved, top, above, part, _output(saved, top, part), d_features.expand(-1, -1, length, -1))
    gradients: list[Tensor] = []
    for number in range(top, 0, -1):
        assert isinstance(above, LaterSums)
        below = _zero_sums(saved, number - 1)
        gradients = [*_later_gradients(saved, number, above, below), *gradients]
        above = below
    assert isinstance(above, FirstSums)
    return [group.sum(0, dtype=torch.float64) for group in (*first_gradients(saved.first, above), *gradients)]


def _later_gradients(
    saved: Saved, number: int, sums: LaterSums, below: FirstSums | LaterSums
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each group's gradients of weight, bias, scale and shift; accumulate the sums of the layer below."""
    later, length = saved.later[number - 1], saved.layers[number - 1].length
    d_weight = widened(later.weight).new_zeros(len(saved.pixels), *later.weight.shape)
    transposed = later.weight.T.contiguous()
    for part in split_parts(saved.pixels):
        dy = _norm_gradient(later, sums, saved.ys[number - 1], part)
        z = _output(saved, number - 1, part)
        d_weight[part.groups].add_(im2col(z, later.layer).flatten(1, 2).mT @ dy.flatten(1, 2))
        _accumulate(saved, number - 1, below, part, z, col2im(dy @ transposed, later.layer, length))
    return later_gradients(later, d_weight, sums.sums)


def _norm_gradient(later: LaterLayer, sums: LaterSums, y: Tensor, part: Part) -> Tensor:
    """Return the gradient of a part of y."""
    d, groups = part.of(sums.d), part.groups
    if later.layer.moments is not None:
        return (widened(d) * later.factor[groups]).to(y.dtype)
    shift, scale = (sums.sums[:, groups, None, None] / later.count).to(later.factor.dtype)
    return norm_gradient(
        d, part.of(y), later.center[groups], later.factor[groups], shift, later.inverse[groups] * scale
    )
