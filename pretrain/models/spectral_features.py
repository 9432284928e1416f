"""The arithmetic of the spectral adapter: three times convolution, batch norm and ReLU along the spectrum; then a mean.

A spectrum of 202 bands becomes 1,280, 512 and 256 numbers on its way to 128 features. Layer by layer, these are written
and read a dozen times and saved for the backward pass: the stem, a twelfth of the operations of a ViT-S's step, took a
quarter of its time and was the peak of its memory. Here the backward pass is written out. It needs the pixels and, of
each layer but the first, the input of its batch norm: 970 numbers for each pixel instead of 4,300. Gradients of a batch
norm are those of arXiv 1502.03167, section 3; those of the first layer's parameters follow from one 7 x 32 product of
im2col and gradient (see spectral_layers.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.models.compilation import compiling, is_compiling, is_exporting
from pretrain.models.spectral_layers import (
    FirstLayer,
    LaterLayer,
    Layer,
    col2im,
    first_layer,
    im2col,
    later_layer,
    norm_gradient,
    outer,
    relu_gradient,
)
from pretrain.models.spectral_parts import Part, split_parts, widened


def spectral_features(pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Compute the features (G, R, N of the last layer) of spectra (G groups, R pixels of a group, bands).

    Args:
        dtype: of products and of what is saved; statistics are taken in fp32 or better.

    Returns:
        The features, and the mean and biased variance (2, G, N) that each layer's norm has taken.
    """
    if is_exporting() and all(layer.moments is not None for layer in layers):
        return convolution_features(pixels, layers, dtype)
    if pixels.requires_grad:
        return plain_features(pixels, layers, dtype)
    features, *moments = _SpectralFeatures.apply(pixels, layers, dtype, *(t for layer in layers for t in layer.tensors))
    return features, moments


def plain_features(pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Compute the same layer by layer, with torch's own gradients, those of the pixels among them."""
    x, taken = pixels.to(dtype)[..., None], []
    for layer in layers:
        y = widened(im2col(x, layer) @ layer.weight.to(dtype) + layer.bias.to(dtype))
        if layer.moments is None:
            variance, mean = torch.var_mean(y, (1, 2), correction=0, keepdim=True)
        else:
            mean, variance = layer.moments[:, None, None, None].expand(-1, len(pixels), 1, 1, -1)
        x = F.relu((y - mean) * (variance + layer.eps).rsqrt() * layer.scale + layer.shift).to(dtype)
        taken.append(torch.stack([mean, variance])[:, :, 0, 0].detach())
    return x.mean(2), taken


def convolution_features(pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Compute the same in evaluation, as three convolutions with folded norms, which exporters and runtimes know."""
    x, taken = pixels.to(dtype).flatten(0, 1)[:, None], []
    for layer in layers:
        assert layer.moments is not None
        mean, variance = layer.moments
        factor = layer.scale * (variance + layer.eps).rsqrt()
        kernel = layer.weight.unflatten(0, (layer.kernel, -1)).permute(2, 1, 0) * factor[:, None, None]
        offset = (layer.bias - mean) * factor + layer.shift
        x = F.relu(F.conv1d(x, kernel.to(dtype), offset.to(dtype), layer.stride, padding=1))
        taken.append(layer.moments[:, None])
    return x.mean(2).view(*pixels.shape[:2], -1), taken


@dataclass(frozen=True)
class Saved:
    """What the backward pass needs of the forward pass.

    Attributes:
        pixels: (G, R, bands).
        first, later: layers with their statistics.
        ys: of each later layer the input of its norm, (G, R, L, N).
    """

    pixels: Tensor
    first: FirstLayer
    later: tuple[LaterLayer, ...]
    ys: tuple[Tensor, ...]

    @property
    def layers(self) -> list[FirstLayer | LaterLayer]:
        return [self.first, *self.later]

    @property
    def parts(self) -> list[Part]:
        return split_parts(self.pixels)

    def output(self, number: int, part: Part) -> Tensor:
        """Compute the output of layer ``number`` for a part of the pixels, (G, R, L, N)."""
        if number == 0:
            return self.first.output(part, self.pixels)
        return self.later[number - 1].output(part, self.ys[number - 1])


class _SpectralFeatures(torch.autograd.Function):
    """`spectral_features` without a gradient for the pixels."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype, *_: Tensor) -> Any:
        saved = _forward(pixels, layers, dtype)
        top = len(saved.later)
        features = torch.cat([saved.output(top, part).mean(2).flatten(0, 1) for part in saved.parts])
        # activation checkpointing frees and recomputes what is saved here, and nothing else
        ctx.save_for_backward(pixels, *saved.ys)
        ctx.first, ctx.later, ctx.compiled = saved.first, saved.later, is_compiling()
        moments = [torch.stack([layer.mean, layer.variance]).float() for layer in saved.layers]
        ctx.mark_non_differentiable(*moments)
        return features.view(*pixels.shape[:2], -1), *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        pixels, *ys = ctx.saved_tensors
        with compiling(ctx.compiled):
            gradients = _backward(Saved(pixels, ctx.first, ctx.later, tuple(ys)), gradient)
        tensors = [tensor for layer in (ctx.first, *ctx.later) for tensor in layer.layer.tensors]
        return None, None, None, *(g.to(tensor.dtype) for g, tensor in zip(gradients, tensors, strict=True))


def _forward(pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> Saved:
    saved = Saved(pixels, first_layer(layers[0], pixels, dtype), (), ())
    for number, layer in enumerate(layers[1:]):
        below = saved.later[-1] if saved.later else saved.first
        later, y = later_layer(layer, pixels, below, partial(saved.output, number))
        saved = Saved(pixels, saved.first, (*saved.later, later), (*saved.ys, y))
    return saved


@dataclass(frozen=True)
class FirstSums:
    """Sums over a group's pixels: im2col^T d (G, K, N), and d (G, N), the gradient of the ReLU's input; float64."""

    product: Tensor
    d_shift: Tensor


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


def _backward(saved: Saved, gradient: Tensor) -> list[Tensor]:
    """Return the gradients of weight, bias, scale and shift of each layer, given that of the features (G, R, N)."""
    top = len(saved.later)
    length = saved.later[-1].length
    above = _zero_sums(saved, top)
    for part in saved.parts:
        d_features = part.of(gradient)[:, :, None] / length
        _accumulate(saved, top, above, part, saved.output(top, part), d_features.expand(-1, -1, length, -1))
    gradients: list[Tensor] = []
    for number in range(top, 0, -1):
        assert isinstance(above, LaterSums)
        below = _zero_sums(saved, number - 1)
        gradients = [*_later_gradients(saved, number, above, below), *gradients]
        above = below
    assert isinstance(above, FirstSums)
    return [group.sum(0, dtype=torch.float64) for group in (*_first_gradients(saved.first, above), *gradients)]


def _later_gradients(
    saved: Saved, number: int, sums: LaterSums, below: FirstSums | LaterSums
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each group's gradients of weight, bias, scale and shift; accumulate the sums of the layer below."""
    later, length = saved.later[number - 1], saved.layers[number - 1].length
    d_weight = widened(later.weight).new_zeros(len(saved.pixels), *later.weight.shape)
    d_bias = torch.zeros_like(later.mean)
    transposed = later.weight.T.contiguous()
    for part in saved.parts:
        dy = _norm_gradient(later, sums, saved.ys[number - 1], part)
        if later.layer.moments is not None:
            d_bias[part.groups].add_(widened(dy).sum((1, 2)))  # zero otherwise: the norm removes any bias
        z = saved.output(number - 1, part)
        d_weight[part.groups].add_(im2col(z, later.layer).flatten(1, 2).mT @ dy.flatten(1, 2))
        _accumulate(saved, number - 1, below, part, z, col2im(dy @ transposed, later.layer, length))
    d_shift, d_scale = sums.sums
    return d_weight, d_bias, d_scale, d_shift


def _norm_gradient(later: LaterLayer, sums: LaterSums, y: Tensor, part: Part) -> Tensor:
    """Return the gradient of a part of y."""
    d, groups = part.of(sums.d), part.groups
    if later.layer.moments is not None:
        return (widened(d) * later.factor[groups]).to(y.dtype)
    shift, scale = (sums.sums[:, groups, None, None] / later.count).to(later.factor.dtype)
    return norm_gradient(
        d, part.of(y), later.center[groups], later.factor[groups], shift, later.inverse[groups] * scale
    )


def _first_gradients(first: FirstLayer, sums: FirstSums) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each group's gradients of weight, bias, scale and shift."""
    factor, apart = first.layer.scale.double() * first.inverse, first.bias - first.mean
    d_scale = first.inverse * ((first.weight * sums.product).sum(1) + apart * sums.d_shift)
    if first.layer.moments is not None:
        return sums.product * factor[:, None], sums.d_shift * factor, d_scale, sums.d_shift
    normal = first.inverse[:, None] * (first.products @ first.weight + outer(first.sums, apart))  # im2col^T x^
    through = outer(first.sums, sums.d_shift) + normal * d_scale[:, None]
    d_weight = factor[:, None] * (sums.product - through / first.count)
    return d_weight, torch.zeros_like(first.mean), d_scale, sums.d_shift
