"""Layers of the spectral adapter as matrix products over im2col of the spectrum, channels last, a few pixels at a time.

The first layer is linear in the pixels, so the mean and variance of its output follow from the first and second moments
of im2col of the pixels (7 and 7 x 7 numbers, summed in float64). Its batch norm is folded into its weights; its output
is computed where it is needed and never saved. Of a later layer only y is saved, the input of its batch norm.

Shapes in comments: R pixels, L positions of a layer's output, K = kernel * channels in, N channels out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.models.compilation import compilable

PIXELS = {"cpu": 256, "cuda": 65_536}
"""Pixels of a part by device: their activations fit a core's cache, or fill a GPU."""


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
    """The first layer with its batch norm folded into its weights.

    Attributes:
        length: L.
        weight, bias: in float64, rounded to the dtype of products first.
        mean, variance: of the norm's input (N,), float64.
        inverse: 1 / sqrt(variance + eps), float64.
        count, sums, products: rows of im2col, their sum (K,) and the sum of their outer products (K, K), float64; zeros
            where the norm has given moments.
        folded, offset: weights and bias of convolution and norm in one, in the dtype of products.
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
        """Unfold some of the pixels (R, bands) to (R, L, K)."""
        return im2col(pixels.to(self.folded.dtype)[:, :, None], self.layer)

    def output(self, pixels: Tensor) -> Tensor:
        """Compute the layer's output for some of the pixels, (R, L, N)."""
        columns = self.im2col(pixels)
        flat = torch.addmm(self.offset, columns.flatten(0, 1), self.folded)
        return flat.relu_().view(*columns.shape[:2], -1)


@dataclass(frozen=True)
class LaterLayer:
    """A layer on top of another, with the statistics of its batch norm.

    Attributes:
        length: L.
        weight: (K, N), in the dtype of products.
        mean, variance: of y over pixels and positions (N,), float64.
        count: rows that they are taken over.
        center, inverse, factor, offset: of the norm, (N,), at least fp32: y * factor + offset is its output.
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

    def output(self, y: Tensor) -> Tensor:
        """Apply batch norm and ReLU to some rows of y, (R, L, N)."""
        return activate(y, self.factor, self.offset)


def first_layer(layer: Layer, pixels: Tensor, dtype: torch.dtype) -> FirstLayer:
    """Take the statistics of the first layer over pixels (R, bands) and fold its norm into its weights."""
    weight, bias = layer.weight.to(dtype).double(), layer.bias.to(dtype).double()
    length, size = layer.positions(pixels.shape[1]), len(weight)
    count = len(pixels) * length
    sums, products = weight.new_zeros(size), weight.new_zeros(size, size)
    mean, variance = given_moments(layer)
    if layer.moments is None:
        for part in range(num_parts(pixels)):
            columns = im2col(take_part(pixels, part).to(dtype)[:, :, None], layer).flatten(0, 1).double()
            sums += columns.sum(0)
            products += columns.T @ columns
        mean = sums @ weight / count + bias
        centered = products - torch.outer(sums, sums) / count
        variance = (weight * (centered @ weight)).sum(0).clamp(min=0) / count
    inverse = (variance + layer.eps).rsqrt()
    factor = layer.scale.double() * inverse
    folded = (weight * factor).to(dtype)
    offset = ((bias - mean) * factor + layer.shift.double()).to(dtype)
    return FirstLayer(layer, length, weight, bias, mean, variance, inverse, count, sums, products, folded, offset)


def later_layer(
    layer: Layer, pixels: int, below: FirstLayer | LaterLayer, output: Callable[[int], Tensor], parts: int
) -> tuple[LaterLayer, Tensor]:
    """Compute y of a layer for all pixels, and its statistics.

    Args:
        pixels: R, of all parts.
        below: the layer below.
        output: from the number of a part to the output of the layer below, (R, length, channels).

    Returns:
        The layer, and y (R, L, N).
    """
    dtype = below.offset.dtype if isinstance(below, FirstLayer) else below.weight.dtype
    weight, bias = layer.weight.to(dtype), layer.bias.to(dtype)
    length = layer.positions(below.length)
    y = bias.new_empty(pixels, length, len(bias))
    moments = RunningMoments(bias.double())
    for part in range(parts):
        rows = take_part(y, part).flatten(0, 1)
        torch.addmm(bias, im2col(output(part), layer).flatten(0, 1), weight, out=rows)
        if layer.moments is None:
            moments.add(widened(rows))
    mean, variance = moments.values if layer.moments is None else given_moments(layer)
    wide = widened(bias).dtype
    center, inverse = mean.to(wide), (variance + layer.eps).rsqrt().to(wide)
    factor = layer.scale.to(wide) * inverse
    offset = layer.shift.to(wide) - center * factor
    return LaterLayer(layer, length, weight, mean, variance, moments.count, center, inverse, factor, offset), y


def im2col(x: Tensor, layer: Layer) -> Tensor:
    """Unfold (R, length, channels) to the inputs of each position of a convolution, (R, L, K)."""
    padded = F.pad(x, (0, 0, 1, 1))
    columns = padded.unfold(1, layer.kernel, layer.stride).transpose(2, 3)
    return columns.reshape(*columns.shape[:2], layer.kernel * x.shape[2])


def col2im(columns: Tensor, layer: Layer, length: int) -> Tensor:
    """Fold (R, L, K) to (R, length, channels), summed where positions overlap: the adjoint of `im2col`."""
    rows, count, _ = columns.shape
    stride, over = layer.stride, layer.kernel - layer.stride  # a position: a whole block, and the next one's beginning
    strided, overlap = columns.view(rows, count, layer.kernel, -1).split([stride, over], 2)
    padded = columns.new_zeros(rows, max((count + 1) * stride, length + 2), strided.shape[3])
    blocks = padded[:, : (count + 1) * stride].view(rows, count + 1, stride, -1)
    blocks[:, :count] = strided
    blocks[:, 1:, :over] += overlap
    return padded[:, 1 : length + 1]


@compilable
def activate(y: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Apply batch norm and ReLU."""
    return torch.addcmul(offset, widened(y), factor).relu_().to(y.dtype)


@compilable
def relu_gradient(dz: Tensor, z: Tensor, y: Tensor, center: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the ReLU's input, and those of shift and scale, (2, N)."""
    d = widened(torch.ops.aten.threshold_backward(dz, z, 0))
    normal = (widened(y) - center) * inverse
    return d, torch.stack([d.sum((0, 1)), (d * normal).sum((0, 1))])


@compilable
def norm_gradient(d: Tensor, y: Tensor, center: Tensor, factor: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient of the input of a norm with this call's statistics; shift and scale are means over it."""
    return ((widened(d) - shift - (widened(y) - center) * scale) * factor).to(y.dtype)


class RunningMoments:
    """Mean and variance of rows that come in parts (Chan, Golub and LeVeque 1983), in float64."""

    def __init__(self, like: Tensor) -> None:
        self.count, self._mean, self._squares = 0, torch.zeros_like(like), torch.zeros_like(like)

    def add(self, rows: Tensor) -> None:
        """Add (rows, N)."""
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


def given_moments(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return mean and variance (N,) that a layer's norm is given, zeros where it takes those of the call; float64."""
    mean, variance = torch.zeros_like(layer.scale).expand(2, -1) if layer.moments is None else layer.moments
    return mean.double(), variance.double()


def num_parts(pixels: Tensor) -> int:
    """Count the parts of all pixels."""
    return -(-len(pixels) // _part_size(pixels))


def take_part(x: Tensor, part: int) -> Tensor:
    """Return the rows of a part."""
    size = _part_size(x)
    return x[part * size : (part + 1) * size]


def _part_size(x: Tensor) -> int:
    return PIXELS.get(x.device.type, PIXELS["cuda"])


def widened(x: Tensor) -> Tensor:
    """Return x in fp32 or better."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
