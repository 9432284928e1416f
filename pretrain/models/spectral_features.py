"""The arithmetic of the spectral adapter: three times convolution, batch norm and ReLU along the spectrum; then a mean.

A spectrum of 202 bands becomes 1,280, 512 and 256 numbers on its way to 128 features. Layer by layer, these are written
and read a dozen times and saved for the backward pass: the stem, a twelfth of the operations of a ViT-S's step, took a
quarter of its time and was the peak of its memory. Here the backward pass is written out. It needs the pixels and, of
each layer but the first, the input of its batch norm: 970 numbers for each pixel instead of 4,300. Gradients of a batch
norm are those of arXiv 1502.03167, section 3; those of the first layer's parameters follow from one 7 x 32 product of
im2col and gradient (see spectral_layers.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.models import spectral_eager
from pretrain.models.compilation import compiling, is_compiling, is_exporting
from pretrain.models.spectral_layers import Layer, Saved, im2col
from pretrain.models.spectral_parts import widened


def spectral_features(
    pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype, fused: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Compute the features (G, R, N of the last layer) of spectra (G groups, R pixels of a group, bands).

    Args:
        dtype: of products and of what is saved; statistics are taken in fp32 or better.
        fused: use Triton kernels, which have the sizes of the published adapter (see pretrain/kernels/stem.py).

    Returns:
        The features, and the mean and biased variance (2, G, N) that each layer's norm has taken.
    """
    if is_exporting() and all(layer.moments is not None for layer in layers):
        return convolution_features(pixels, layers, dtype)
    if pixels.requires_grad:
        return plain_features(pixels, layers, dtype)
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    features, *moments = _SpectralFeatures.apply(pixels, layers, dtype, fused, *tensors)
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


class _SpectralFeatures(torch.autograd.Function):
    """`spectral_features` without a gradient for the pixels."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype, fused: bool, *_: Tensor) -> Any:
        ctx.passes, ctx.compiled = _passes(fused), is_compiling()
        saved, features = ctx.passes.forward(pixels, layers, dtype)
        # activation checkpointing frees and recomputes what is saved here, and nothing else
        ctx.save_for_backward(pixels, *saved.ys)
        ctx.first, ctx.later = saved.first, saved.later
        moments = [torch.stack([layer.mean, layer.variance]).float() for layer in saved.layers]
        ctx.mark_non_differentiable(*moments)
        return features, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        pixels, *ys = ctx.saved_tensors
        with compiling(ctx.compiled):
            gradients = ctx.passes.backward(Saved(pixels, ctx.first, ctx.later, tuple(ys)), gradient)
        tensors = [tensor for layer in (ctx.first, *ctx.later) for tensor in layer.layer.tensors]
        return None, None, None, None, *(g.to(tensor.dtype) for g, tensor in zip(gradients, tensors, strict=True))


def _passes(fused: bool) -> Any:
    """Return the module with the forward and the backward pass."""
    if not fused:
        return spectral_eager
    from pretrain.models import spectral_fused  # imports Triton

    return spectral_fused
