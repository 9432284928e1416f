"""The arithmetic of the spectral adapter: three times convolution, batch norm and ReLU along the spectrum; then a mean.

A spectrum of 202 bands becomes 1,280, 512 and 256 numbers on its way to 128 features. Layer by layer, these are written
and read a dozen times and kept for the backward pass: the stem, a twelfth of the operations of a ViT-S's step, took a
quarter of its time and was the peak of its memory. Here layers are matrix products over windows of the spectrum,
channels last, for as many pixels at a time as fit a cache, and the backward pass is written out:

- The first layer is linear in the pixels, so the mean and variance of its output follow from the first and second
  moments of the pixels' windows (7 and 7 x 7 numbers, summed in float64). Its batch norm is folded into its weights,
  its output is made where it is needed and never kept, and the gradients of all its parameters follow from one 7 x 32
  product of windows and gradient.
- Of the others only what batch norm takes in is kept: with the pixels 970 numbers for each instead of 4,300.
- Gradients of a batch norm are those of arXiv 1502.03167, section 3.

Shapes in comments: R pixels, L positions of a layer's output, K = kernel * channels in, N channels out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.models.compilation import Body, is_exporting

PIXELS = {"cpu": 256, "cuda": 65_536}
"""Pixels at a time: what they become fits a core's cache, or fills a GPU."""


@dataclass(frozen=True)
class Layer:
    """One convolution with its batch norm.

    Attributes:
        kernel, stride: of the convolution; padding is 1.
        weight, bias: (K, N), positions of the kernel before channels, and (N,).
        scale, shift: of the batch norm, (N,).
        moments: mean and variance (2, N) that the norm takes; None for those of this call.
        eps: added to the variance.
    """

    kernel: int
    stride: int
    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor
    moments: Tensor | None
    eps: float

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is trained."""
        return self.weight, self.bias, self.scale, self.shift

    def positions(self, length: int) -> int:
        """L from the length of the input."""
        return (length + 2 - self.kernel) // self.stride + 1


def spectral_features(pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Spectra (R, bands) to features (R, N of the last layer).

    Args:
        dtype: of products and of what is kept; statistics are taken in fp32 or better.

    Returns:
        The features, and mean and biased variance (2, N) that each layer has taken.
    """
    if is_exporting() and all(layer.moments is not None for layer in layers):
        return convolution_features(pixels, layers, dtype)
    if pixels.requires_grad:
        return plain_features(pixels, layers, dtype)
    features, *moments = _Stem.apply(pixels, layers, dtype, *(t for layer in layers for t in layer.tensors))
    return features, moments


def plain_features(pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The same layer by layer, with torch's own gradients: also for the pixels."""
    x, taken = pixels.to(dtype)[:, :, None], []
    for layer in layers:
        y = _wide(windows(x, layer) @ layer.weight.to(dtype) + layer.bias.to(dtype))
        if layer.moments is None:
            variance, mean = torch.var_mean(y, (0, 1), correction=0)
        else:
            mean, variance = layer.moments
        x = F.relu((y - mean) * (variance + layer.eps).rsqrt() * layer.scale + layer.shift).to(dtype)
        taken.append(torch.stack([mean, variance]).detach())
    return x.mean(1), taken


def convolution_features(pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The same in evaluation, as three convolutions with the norms folded in: what exporters and runtimes know."""
    x, taken = pixels.to(dtype)[:, None], []
    for layer in layers:
        assert layer.moments is not None
        mean, variance = layer.moments
        factor = layer.scale * (variance + layer.eps).rsqrt()
        kernel = layer.weight.unflatten(0, (layer.kernel, -1)).permute(2, 1, 0) * factor[:, None, None]
        offset = (layer.bias - mean) * factor + layer.shift
        x = F.relu(F.conv1d(x, kernel.to(dtype), offset.to(dtype), layer.stride, padding=1))
        taken.append(layer.moments)
    return x.mean(2), taken


def windows(x: Tensor, layer: Layer) -> Tensor:
    """(R, length, channels) to the windows of its positions (R, L, K)."""
    padded = F.pad(x, (0, 0, 1, 1))
    cut = padded.unfold(1, layer.kernel, layer.stride).transpose(2, 3)
    return cut.reshape(*cut.shape[:2], layer.kernel * x.shape[2])


def fold(cut: Tensor, layer: Layer, length: int) -> Tensor:
    """The adjoint of `windows`: (R, L, K), summed where they overlap, to (R, length, channels)."""
    rows, count, _ = cut.shape
    stride, over = layer.stride, layer.kernel - layer.stride  # a window: a whole block, and the next one's beginning
    whole, rest = cut.view(rows, count, layer.kernel, -1).split([stride, over], 2)
    padded = cut.new_zeros(rows, max((count + 1) * stride, length + 2), whole.shape[3])
    blocks = padded[:, : (count + 1) * stride].view(rows, count + 1, stride, -1)
    blocks[:, :count] = whole
    blocks[:, 1:, :over] += rest
    return padded[:, 1 : length + 1]


class _Stem(torch.autograd.Function):
    """`spectral_features` without a gradient for the pixels."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, layers: Sequence[Layer], dtype: torch.dtype, *_: Tensor) -> Any:
        first = _First(layers[0], pixels, dtype)
        last: _First | _Later = first
        later: list[_Later] = []
        for layer in layers[1:]:
            last = _Later(layer, last)
            later.append(last)
        features = torch.cat([last.output(part).mean(1) for part in range(first.parts)])
        ctx.save_for_backward(pixels, *(stage.y for stage in later))  # here alone: recomputation must see them go
        ctx.first, ctx.later, first.pixels = first, later, None
        for stage in later:
            stage.y = None
        moments = [first.moments(), *(stage.moments() for stage in later)]
        ctx.mark_non_differentiable(*moments)
        return features, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        first, later = ctx.first, ctx.later
        first.pixels, *kept = ctx.saved_tensors
        for stage, y in zip(later, kept, strict=True):
            stage.y = y
        last = later[-1]
        first.begin_backward()
        last.begin_backward()
        for part in range(first.parts):
            mine = _part(gradient, part)[:, None] / last.length
            last.receive(part, last.output(part), mine.expand(-1, last.length, -1))
        gradients: list[Tensor] = []
        for stage in reversed(later):
            gradients = [*stage.backward(), *gradients]
        gradients = [*first.backward(), *gradients]
        first.pixels = None
        tensors = [tensor for stage in [first, *later] for tensor in stage.layer.tensors]
        return None, None, None, *(g.to(tensor.dtype) for g, tensor in zip(gradients, tensors, strict=True))


class _First:
    """The first layer, never written down: its norm is folded into its weights.

    Attributes:
        mean, variance: of the layer's output (N,), float64.
    """

    def __init__(self, layer: Layer, pixels: Tensor, dtype: torch.dtype) -> None:
        self.layer, self.dtype = layer, dtype
        self.pixels: Tensor | None = pixels
        self.pixel_count, self.length = len(pixels), layer.positions(pixels.shape[1])
        self.parts = -(-len(pixels) // _size(pixels))
        weight, bias = layer.weight.to(dtype).double(), layer.bias.to(dtype).double()
        self.weight, self.bias = weight, bias
        self.mean, self.variance = _given(layer)
        if layer.moments is None:
            self._sum_up()
            self.mean = self.sums @ weight / self.count + bias
            centered = self.products - torch.outer(self.sums, self.sums) / self.count
            self.variance = (weight * (centered @ weight)).sum(0).clamp(min=0) / self.count
        self.inverse = (self.variance + layer.eps).rsqrt()
        factor = layer.scale.double() * self.inverse
        self.folded = (weight * factor).to(dtype)
        self.offset = ((bias - self.mean) * factor + layer.shift.double()).to(dtype)

    def _sum_up(self) -> None:
        """Sums of the windows and of their products."""
        self.count = self.pixel_count * self.length
        size = len(self.weight)
        self.sums, self.products = self.weight.new_zeros(size), self.weight.new_zeros(size, size)
        for part in range(self.parts):
            cut = self._windows(part).flatten(0, 1).double()
            self.sums += cut.sum(0)
            self.products += cut.T @ cut

    def _windows(self, part: int) -> Tensor:
        return windows(_part(self.pixels, part).to(self.dtype)[:, :, None], self.layer)

    def output(self, part: int) -> Tensor:
        """(R, L, N)."""
        cut = self._windows(part)
        flat = torch.addmm(self.offset, cut.flatten(0, 1), self.folded)
        return flat.relu_().view(*cut.shape[:2], -1)

    def begin_backward(self) -> None:
        """Sums of nothing yet: windows^T d, and d, the gradient in front of the ReLU."""
        self.product, self.d_shift = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def receive(self, part: int, z: Tensor, dz: Tensor) -> None:
        """Take in a part of the output and its gradient."""
        d = torch.ops.aten.threshold_backward(dz, z, 0).flatten(0, 1)
        self.product += self._windows(part).flatten(0, 1).T @ d
        self.d_shift += _wide(d).sum(0)

    def moments(self) -> Tensor:
        """Mean and biased variance of what the norm takes in, (2, N)."""
        return torch.stack([self.mean, self.variance]).float()

    def backward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of weight, bias, scale and shift."""
        factor, apart = self.layer.scale.double() * self.inverse, self.bias - self.mean
        d_scale = self.inverse * ((self.weight * self.product).sum(0) + apart * self.d_shift)
        if self.layer.moments is not None:
            return self.product * factor, self.d_shift * factor, d_scale, self.d_shift
        normal = self.inverse * (self.products @ self.weight + torch.outer(self.sums, apart))  # windows^T x^
        through = torch.outer(self.sums, self.d_shift) + normal * d_scale
        return factor * (self.product - through / self.count), torch.zeros_like(self.bias), d_scale, self.d_shift


class _Later:
    """A layer on top of another, of which y, what its norm takes in, is kept.

    Attributes:
        y: (R, L, N) of all pixels.
        d: the gradient in front of the ReLU, like y.
        mean, variance: of y over pixels and positions (N,), float64.
    """

    def __init__(self, layer: Layer, below: "_First | _Later") -> None:
        self.layer, self.below = layer, below
        self.dtype: torch.dtype = below.dtype
        self.parts: int = below.parts
        self.pixel_count: int = below.pixel_count
        self.length: int = layer.positions(below.length)
        self.weight, bias = layer.weight.to(self.dtype), layer.bias.to(self.dtype)
        self.y: Tensor | None = bias.new_empty(below.pixel_count, self.length, len(bias))
        moments = _Moments(bias.double())
        for part in range(self.parts):
            rows = _part(self.y, part).flatten(0, 1)
            torch.addmm(bias, windows(below.output(part), layer).flatten(0, 1), self.weight, out=rows)
            if layer.moments is None:
                moments.add(_wide(rows))
        self.count = moments.count
        self.mean, self.variance = moments.values if layer.moments is None else _given(layer)
        wide = _wide(bias).dtype
        self.center, self.inverse = self.mean.to(wide), (self.variance + layer.eps).rsqrt().to(wide)
        self.factor = layer.scale.to(wide) * self.inverse
        self.offset = layer.shift.to(wide) - self.center * self.factor

    def output(self, part: int) -> Tensor:
        """(R, L, N)."""
        return _activated(_part(self.y, part), self.factor, self.offset)

    def begin_backward(self) -> None:
        """Room for the gradient in front of the ReLU, and sums of nothing yet: the gradients of shift and scale."""
        assert self.y is not None
        self.d: Tensor | None = torch.empty_like(self.y)
        self.sums = torch.zeros_like(self.mean).repeat(2, 1)

    def receive(self, part: int, z: Tensor, dz: Tensor) -> None:
        """Take in a part of the output and its gradient."""
        d, sums = _before_relu(dz, z, _part(self.y, part), self.center, self.inverse)
        self.sums += sums
        _part(self.d, part).copy_(d)

    def moments(self) -> Tensor:
        """Mean and biased variance of what the norm takes in, (2, N)."""
        return torch.stack([self.mean, self.variance]).float()

    def backward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of weight, bias, scale and shift; the layer below receives that of its output."""
        d_weight, d_bias = torch.zeros_like(_wide(self.weight)), torch.zeros_like(self.offset)
        transposed = self.weight.T.contiguous()
        if isinstance(self.below, _Later):
            self.below.begin_backward()
        for part in range(self.parts):
            dy = self._through_norm(part)
            if self.layer.moments is not None:
                d_bias += _wide(dy).sum((0, 1))  # zero otherwise: the norm takes any bias out again
            z = self.below.output(part)
            d_weight += windows(z, self.layer).flatten(0, 1).T @ dy.flatten(0, 1)
            self.below.receive(part, z, fold(dy @ transposed, self.layer, self.below.length))
        d_shift, d_scale = self.sums
        self.y = self.d = None
        return d_weight, d_bias, d_scale, d_shift

    def _through_norm(self, part: int) -> Tensor:
        """The gradient of a part of y."""
        y, d = _part(self.y, part), _part(self.d, part)
        if self.layer.moments is not None:
            return (_wide(d) * self.factor).to(y.dtype)
        shift, scale = (self.sums / self.count).to(self.factor.dtype)
        return _before_norm(d, y, self.center, self.factor, shift, self.inverse * scale)


@Body
def _activated(y: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Batch norm and ReLU."""
    return torch.addcmul(offset, _wide(y), factor).relu_().to(y.dtype)


@Body
def _before_relu(dz: Tensor, z: Tensor, y: Tensor, center: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient in front of the ReLU, and those of shift and scale, (2, N)."""
    d = _wide(torch.ops.aten.threshold_backward(dz, z, 0))
    normal = (_wide(y) - center) * inverse
    return d, torch.stack([d.sum((0, 1)), (d * normal).sum((0, 1))])


@Body
def _before_norm(d: Tensor, y: Tensor, center: Tensor, factor: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The gradient in front of a norm with this call's statistics; shift and scale are means over it."""
    return ((_wide(d) - shift - (_wide(y) - center) * scale) * factor).to(y.dtype)


class _Moments:
    """Mean and variance of rows that come in parts (Chan, Golub and LeVeque 1983), in float64."""

    def __init__(self, like: Tensor) -> None:
        self.count, self._mean, self._squares = 0, torch.zeros_like(like), torch.zeros_like(like)

    def add(self, rows: Tensor) -> None:
        """Take in (rows, N)."""
        mean = rows.mean(0)
        squares = (rows - mean).square_().sum(0)
        total, apart = self.count + len(rows), mean.double() - self._mean
        self._squares += squares.double() + apart.square() * (self.count * len(rows) / total)
        self._mean += apart * (len(rows) / total)
        self.count = total

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, (N,)."""
        return self._mean, self._squares / self.count


def _given(layer: Layer) -> tuple[Tensor, Tensor]:
    """Mean and variance that a layer's norm is told, zeros where it takes its own."""
    mean, variance = torch.zeros_like(layer.scale).expand(2, -1) if layer.moments is None else layer.moments
    return mean.double(), variance.double()


def _part(x: Tensor | None, part: int) -> Tensor:
    assert x is not None
    size = _size(x)
    return x[part * size : (part + 1) * size]


def _size(x: Tensor) -> int:
    """Pixels of a part."""
    return PIXELS.get(x.device.type, PIXELS["cuda"])


def _wide(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
