"""Layers of the spectral adapter as matrix products over im2col of the spectrum, channels last, a few pixels at a time.

The first layer is linear in the pixels, so the mean and variance of its output follow from the first and second moments
of im2col of the pixels (7 and 7 x 7 numbers of each group). Its batch norm is folded into its weights; its output is
computed where it is needed and never saved. Of a later layer only y is saved, the input of its batch norm.

All batch-norm groups go through a layer together, each with statistics and sums of its own, so that its numbers don't
depend on how many groups a call has: what is summed over groups is added up at the end, in float64.

Shapes: G groups, R pixels of a group, L positions of a layer's output, K = kernel * channels in, N channels out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.models.compilation import compilable
from pretrain.models.spectral_parts import Part, widened

Moments = Callable[[Tensor, int, int, int], tuple[Tensor, Tensor]]
"""Sums and products of rows of im2col, from pixels, kernel, stride and length."""


@dataclass(frozen=True)
class Layer:
    """One convolution with its batch norm.

    Attributes:
        kernel, stride: of the convolution; padding is 1.
        weight, bias: (K, N), positions of the kernel before channels, and (N,).
        scale, shift: of the batch norm, (N,).
        moments: mean and variance (2, N) for the norm; None for those of this call.
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
        """The trained ones."""
        return self.weight, self.bias, self.scale, self.shift

    def positions(self, length: int) -> int:
        """Return L for an input of this length."""
        return (length + 2 - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class FirstLayer:
    """The first layer with the batch norm of each group folded into its weights.

    Attributes:
        length: L.
        weight, bias: (K, N) and (N,), in float64, rounded to the dtype of products first.
        mean, variance: of the norm's input (G, N), float64.
        inverse: 1 / sqrt(variance + eps), float64.
        count: rows of im2col of a group.
        sums, products: sum of these rows (G, K) and of their outer products (G, K, K), float64; zeros where the norm
            has given moments.
        folded, offset: weights (G, K, N) and bias (G, 1, N) of convolution and norm in one, in the dtype of products.
    """

    layer: Layer
    length: int
    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    inverse: Tensor
    count: int
    sums: Tensor
    products: Tensor
    folded: Tensor
    offset: Tensor

    def im2col(self, pixels: Tensor) -> Tensor:
        """Unfold some of the pixels (G, R, bands) to (G, R, L, K)."""
        return im2col(pixels.to(self.folded.dtype)[..., None], self.layer)

    def output(self, part: Part, pixels: Tensor) -> Tensor:
        """Compute the layer's output for a part of the pixels, (G, R, L, N)."""
        columns = self.im2col(part.of(pixels))
        flat = torch.baddbmm(self.offset[part.groups], columns.flatten(1, 2), self.folded[part.groups])
        return flat.relu_().view(*columns.shape[:3], -1)


@dataclass(frozen=True)
class FirstSums:
    """Sums over a group's pixels: im2col^T d (G, K, N), and d (G, N), the gradient of the ReLU's input; float64."""

    product: Tensor
    d_shift: Tensor


@dataclass(frozen=True)
class LaterLayer:
    """A layer on top of another, with the statistics of its batch norm.

    Attributes:
        length: L.
        weight: (K, N), in the dtype of products.
        mean, variance: of y over the pixels and positions of a group (G, N), float64.
        count: rows that they are taken over.
        center, inverse, factor, offset: of the norm, (G, 1, 1, N), at least fp32: y * factor + offset is its output.
    """

    layer: Layer
    length: int
    weight: Tensor
    mean: Tensor
    variance: Tensor
    count: int
    center: Tensor
    inverse: Tensor
    factor: Tensor
    offset: Tensor

    def output(self, part: Part, y: Tensor) -> Tensor:
        """Apply batch norm and ReLU to a part of y, (G, R, L, N)."""
        return activate(part.of(y), self.factor[part.groups], self.offset[part.groups])


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


def first_layer(layer: Layer, pixels: Tensor, dtype: torch.dtype, im2col_moments: Moments) -> FirstLayer:
    """Take the statistics of the first layer over pixels (G, R, bands) and fold its norm into its weights.

    Args:
        dtype: of products.
        im2col_moments: as in spectral_moments.py.
    """
    weight, bias = layer.weight.to(dtype).double(), layer.bias.to(dtype).double()
    (groups, count, bands), size = pixels.shape, len(weight)
    length = layer.positions(bands)
    count *= length
    sums, products = weight.new_zeros(groups, size), weight.new_zeros(groups, size, size)
    mean, variance = given_moments(layer, groups)
    if layer.moments is None:
        sums, products = im2col_moments(pixels.to(dtype), layer.kernel, layer.stride, length)
        mean = sums @ weight / count + bias
        centered = products - outer(sums, sums) / count
        variance = (weight * (centered @ weight)).sum(1).clamp(min=0) / count
    inverse = (variance + layer.eps).rsqrt()
    factor = layer.scale.double() * inverse
    folded = (weight * factor[:, None]).to(dtype)
    offset = ((bias - mean) * factor + layer.shift.double()).to(dtype)[:, None]
    return FirstLayer(layer, length, weight, bias, mean, variance, inverse, count, sums, products, folded, offset)


def later_layer(layer: Layer, weight: Tensor, y: Tensor, moments: tuple[Tensor, Tensor]) -> LaterLayer:
    """Fold the norm of a layer above the first.

    Args:
        weight: (K, N), in the dtype of products.
        y: (G, R, L, N).
        moments: mean and variance of y by group, (G, N), float64; unused where the norm has given ones.
    """
    groups, pixels, length, _ = y.shape
    mean, variance = moments if layer.moments is None else given_moments(layer, groups)
    wide = widened(y[:0]).dtype
    center, inverse = mean.to(wide)[:, None, None], (variance + layer.eps).rsqrt().to(wide)[:, None, None]
    factor = layer.scale.to(wide) * inverse
    offset = layer.shift.to(wide) - center * factor
    return LaterLayer(layer, length, weight, mean, variance, pixels * length, center, inverse, factor, offset)


def im2col(x: Tensor, layer: Layer) -> Tensor:
    """Unfold (..., length, channels) to the inputs of each position of a convolution, (..., L, K)."""
    return F.pad(x, (0, 0, 1, 1)).unfold(-2, layer.kernel, layer.stride).transpose(-1, -2).flatten(-2)


def col2im(columns: Tensor, layer: Layer, length: int) -> Tensor:
    """Fold (..., L, K) to (..., length, channels), summed where positions overlap: the adjoint of `im2col`."""
    count, stride = columns.shape[-2], layer.stride
    over = layer.kernel - stride  # a position: a whole block, and the next one's beginning
    strided, overlap = columns.unflatten(-1, (layer.kernel, -1)).split([stride, over], -2)
    padded = columns.new_zeros(*columns.shape[:-2], max((count + 1) * stride, length + 2), strided.shape[-1])
    blocks = padded[..., : (count + 1) * stride, :].unflatten(-2, (count + 1, stride))
    blocks[..., :count, :, :] = strided
    blocks[..., 1:, :over, :] += overlap
    return padded[..., 1 : length + 1, :]


@compilable
def activate(y: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Apply batch norm and ReLU."""
    return torch.addcmul(offset, widened(y), factor).relu_().to(y.dtype)


@compilable
def relu_gradient(dz: Tensor, z: Tensor, y: Tensor, center: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the ReLU's input, and those of each group's shift and scale, (2, G, N)."""
    d = widened(torch.ops.aten.threshold_backward(dz, z, 0))
    normal = (widened(y) - center) * inverse
    return d, torch.stack([d.sum((1, 2)), (d * normal).sum((1, 2))])


@compilable
def norm_gradient(d: Tensor, y: Tensor, center: Tensor, factor: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient of the input of a norm with this call's statistics; shift and scale are means over it."""
    return ((widened(d) - shift - (widened(y) - center) * scale) * factor).to(y.dtype)


def first_gradients(first: FirstLayer, sums: FirstSums) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each group's gradients of weight, bias, scale and shift."""
    factor, apart = first.layer.scale.double() * first.inverse, first.bias - first.mean
    d_scale = first.inverse * ((first.weight * sums.product).sum(1) + apart * sums.d_shift)
    if first.layer.moments is not None:
        return sums.product * factor[:, None], sums.d_shift * factor, d_scale, sums.d_shift
    normal = first.inverse[:, None] * (first.products @ first.weight + outer(first.sums, apart))  # im2col^T x^
    through = outer(first.sums, sums.d_shift) + normal * d_scale[:, None]
    d_weight = factor[:, None] * (sums.product - through / first.count)
    return d_weight, torch.zeros_like(first.mean), d_scale, sums.d_shift


def later_gradients(later: LaterLayer, d_weight: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each group's gradients of weight, bias, scale and shift.

    Args:
        d_weight: (G, K, N).
        sums: gradients of shift and scale, (2, G, N).
    """
    d_shift, d_scale = sums
    is_given = later.layer.moments is not None  # statistics of the call remove any bias
    d_bias = later.factor[:, 0, 0] * d_shift if is_given else torch.zeros_like(d_shift)
    return d_weight, d_bias, d_scale, d_shift


def outer(a: Tensor, b: Tensor) -> Tensor:
    """Return the outer product of each group's vectors (G, A) and (G, B), (G, A, B)."""
    return a[:, :, None] * b[:, None]


def given_moments(layer: Layer, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance (G, N) that a layer's norm is given, zeros where it takes those of the call; float64."""
    mean, variance = torch.zeros_like(layer.scale).expand(2, -1) if layer.moments is None else layer.moments
    return mean.double().expand(groups, -1), variance.double().expand(groups, -1)
