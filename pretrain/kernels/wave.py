"""Kernels of the wave stem: from spectra to features in one pass, and two passes back (see pretrain/models/wave.py).

A program has all 128 products of a block of pixels in registers. So layer norm, GELU and the linear layer follow
without a way through memory. The backward pass needs the pixels and the products, and recomputes the rest from these.
Sums over pixels are those of shares of a group's blocks, in a fixed order.

Tiles have features as rows and pixels as columns: warps divide the rows, so what has a value for each feature, such as
the sums over pixels, takes a few registers of a thread and not a hundred.

Shapes: G groups, R pixels of a group, C bands, S shares.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pretrain.kernels.launching import launch, operator
from pretrain.kernels.stem import block_rows, load_matrix
from pretrain.kernels.stem_weights import store_matrix

BLOCK, SMALL_BLOCK = 64, 32
"""Pixels that a program computes at once: 64 wherever that leaves its registers without spills, 32 elsewhere."""

BANDS, CHUNK = 32, 64
"""Bands that a program multiplies at once, and those of a program of `matrix_gradient`."""

FEATURES, SUMS = tl.constexpr(128), tl.constexpr(131)
"""Products and features of a pixel; rows of sums: gradients of the weight's 128 rows, of bias, scale and shift."""

SHARES, SHARE = 128, 1024
"""Shares of a group's pixels: at most so many, of at least so many pixels."""


def num_shares(count: int) -> int:
    """Return the number of shares of a group of pixels, which depends on nothing else, so sums don't either."""
    return min(SHARES, triton.cdiv(count, SHARE))


# ---- features ----


def launch_features(
    pixels: Tensor, matrix: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute features, and the products of spectra with a matrix that they come from, each (G, R, 128).

    Args:
        pixels: (G, R, C) in fp32, fp16 or bf16.
        matrix: (G, C, 128), in the dtype of products and features.
        scale, shift: of the layer norm, (128,).
        weight, bias: of the linear layer, (128, 128) and (128,).
        eps: of the layer norm.
    """
    pixels, matrix, weight = pixels.contiguous(), matrix.contiguous(), weight.contiguous()
    features, products = _features_outputs(pixels, matrix)
    groups, count, bands = pixels.shape
    arguments = (pixels, matrix, scale, shift, weight, bias, features, products, count, bands, eps)
    launch(_wave_features, (triton.cdiv(count, BLOCK), groups), *arguments, num_warps=8, BLOCK=BLOCK, BANDS=BANDS)
    return features, products


def _features_outputs(pixels: Tensor, matrix: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Return outputs without contents."""
    features = matrix.new_empty(*pixels.shape[:2], matrix.shape[2])
    return features, torch.empty_like(features)


features = operator("wave_features")(launch_features)
features.register_fake(_features_outputs)


@register_flop_formula(torch.ops.spectralforge.wave_features)
def _features_flops(pixels, matrix, scale, shift, weight, bias, eps, out_shape=None) -> int:
    return 2 * pixels[0] * pixels[1] * matrix[2] * (pixels[2] + weight[0])


@triton.jit
def load_spectra(pixels, first, inside, begin, bands, BANDS: tl.constexpr):
    """Load bands of a block's pixels from ``begin`` on, (BANDS, BLOCK), zeros where there are none."""
    band = begin + tl.arange(0, BANDS)
    place = tl.arange(0, inside.shape[0])[None, :] * bands + band[:, None]
    return tl.load(pixels + first * bands + place, mask=(band < bands)[:, None] & inside[None, :], other=0.0)


@triton.jit
def feature_places(first, inside):
    """Return where a block's pixels have their features in (G, R, 128), as (128, BLOCK)."""
    pixel = first + tl.arange(0, inside.shape[0])
    return pixel[None, :] * FEATURES + tl.arange(0, FEATURES)[:, None]


@triton.jit
def load_vector(values):
    """Load a value for each feature, fp32 (128, 1)."""
    return tl.load(values + tl.arange(0, FEATURES)).to(tl.float32)[:, None]


@triton.jit
def normalized(products, eps):
    """Return the normalized products (128, BLOCK), and the reciprocal of their deviation (1, BLOCK)."""
    centered = products - tl.sum(products, 0)[None, :] / FEATURES
    inverse = 1.0 / tl.sqrt(tl.sum(centered * centered, 0) / FEATURES + eps)[None, :]
    return centered * inverse, inverse


@triton.jit
def normal_distribution(x):
    """Return the distribution function of the standard normal distribution, by which GELU multiplies its input."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _wave_features(
    pixels,
    matrix,
    scale,
    shift,
    weight,
    bias,
    features,
    products,
    count,
    bands,
    eps,
    BLOCK: tl.constexpr,
    BANDS: tl.constexpr,
):
    block, group = tl.program_id(0), tl.program_id(1)
    first, inside = block_rows(block, group, count, BLOCK)
    total = tl.zeros((FEATURES, BLOCK), tl.float32)
    for begin in range(0, bands, BANDS):
        x = load_spectra(pixels, first, inside, begin, bands, BANDS).to(products.dtype.element_ty)
        band = begin + tl.arange(0, BANDS)
        places = (group * bands + band)[None, :] * FEATURES + tl.arange(0, FEATURES)[:, None]
        filters = tl.load(matrix + places, mask=(band < bands)[None, :], other=0.0)
        total = tl.dot(filters, x, total, input_precision="ieee")
    rounded, places = total.to(products.dtype.element_ty), feature_places(first, inside)
    tl.store(products + places, rounded, mask=inside[None, :])
    x, _ = normalized(rounded.to(tl.float32), eps)
    y = x * load_vector(scale) + load_vector(shift)
    active = (y * normal_distribution(y)).to(rounded.dtype)
    linear = load_matrix(weight, FEATURES, FEATURES, FEATURES).to(rounded.dtype)
    y = tl.dot(linear, active, input_precision="ieee") + load_vector(bias)
    tl.store(features + places, y, mask=inside[None, :])


# ---- gradients of products, norm and linear layer ----


def launch_products_gradient(
    d_features: Tensor, products: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute the gradient of products, (G, R, 128), and those of the weights by share, fp32 (G, S, 131, 128).

    Args:
        d_features: gradient of the features, (G, R, 128).
        products, scale, shift, weight, eps: see `features`.
    """
    d_features, products, weight = d_features.contiguous(), products.contiguous(), weight.contiguous()
    d_products, sums = _products_outputs(d_features, products)
    groups, count, _ = products.shape
    arguments = (d_features, products, scale, shift, weight, d_products, sums, count, eps)
    launch(_wave_products_gradient, (sums.shape[1], groups), *arguments, num_warps=8, BLOCK=SMALL_BLOCK)
    return d_products, sums


def _products_outputs(_: Tensor, products: Tensor, *__: object) -> tuple[Tensor, Tensor]:
    groups, count, width = products.shape
    sums = products.new_empty(groups, num_shares(count), SUMS.value, width, dtype=torch.float32)
    return torch.empty_like(products, memory_format=torch.contiguous_format), sums


products_gradient = operator("wave_products_gradient")(launch_products_gradient)
products_gradient.register_fake(_products_outputs)


@register_flop_formula(torch.ops.spectralforge.wave_products_gradient)
def _products_flops(d_features, products, scale, shift, weight, eps, out_shape=None) -> int:
    return 2 * 2 * products[0] * products[1] * weight[0] * weight[1]


@triton.jit
def _wave_products_gradient(
    d_features, products, scale, shift, weight, d_products, sums, count, eps, BLOCK: tl.constexpr
):
    share, group = tl.program_id(0), tl.program_id(1)
    slope, offset = load_vector(scale), load_vector(shift)
    linear = load_matrix(weight, FEATURES, FEATURES, FEATURES).to(products.dtype.element_ty)
    d_weight = tl.zeros((FEATURES, FEATURES), tl.float32)
    d_bias = tl.zeros((FEATURES,), tl.float32)
    d_scale, d_shift = tl.zeros((FEATURES,), tl.float32), tl.zeros((FEATURES,), tl.float32)
    for block in range(share, tl.cdiv(count, BLOCK), tl.num_programs(0)):
        first, inside = block_rows(block, group, count, BLOCK)
        places = feature_places(first, inside)
        x, inverse = normalized(tl.load(products + places, mask=inside[None, :], other=0.0).to(tl.float32), eps)
        y = x * slope + offset
        below = normal_distribution(y)
        d = tl.load(d_features + places, mask=inside[None, :], other=0.0).to(linear.dtype)
        d_bias += tl.sum(d.to(tl.float32), 1)
        d_weight = tl.dot(d, tl.trans((y * below).to(d.dtype)), d_weight, input_precision="ieee")
        d_y = tl.dot(tl.trans(linear), d, input_precision="ieee")
        d_y *= below + y * tl.exp(-0.5 * y * y) * 0.3989422804014327
        d_scale += tl.sum(d_y * x, 1)
        d_shift += tl.sum(d_y, 1)
        d_y *= slope
        d_y -= (tl.sum(d_y, 0)[None, :] + x * tl.sum(d_y * x, 0)[None, :]) / FEATURES
        tl.store(d_products + places, d_y * inverse, mask=inside[None, :])
    target = sums + (group * tl.num_programs(0) + share) * SUMS * FEATURES
    store_matrix(target, d_weight, FEATURES, FEATURES, FEATURES)
    target += FEATURES * FEATURES + tl.arange(0, FEATURES)
    tl.store(target, d_bias)
    tl.store(target + FEATURES, d_scale)
    tl.store(target + 2 * FEATURES, d_shift)


# ---- gradient of the matrix ----


def launch_matrix_gradient(pixels: Tensor, d_products: Tensor) -> Tensor:
    """Compute the gradient of the matrix by share, fp32 (G, S, C, 128).

    Args:
        pixels: (G, R, C).
        d_products: gradient of the products, (G, R, 128).
    """
    pixels, d_products = pixels.contiguous(), d_products.contiguous()
    shares = _matrix_output(pixels, d_products)
    groups, count, bands = pixels.shape
    grid = (triton.cdiv(bands, CHUNK), shares.shape[1], groups)
    launch(_wave_matrix_gradient, grid, pixels, d_products, shares, count, bands, num_warps=8, BLOCK=BLOCK, CHUNK=CHUNK)
    return shares


def _matrix_output(pixels: Tensor, d_products: Tensor) -> Tensor:
    groups, count, bands = pixels.shape
    return d_products.new_empty(groups, num_shares(count), bands, d_products.shape[2], dtype=torch.float32)


matrix_gradient = operator("wave_matrix_gradient")(launch_matrix_gradient)
matrix_gradient.register_fake(_matrix_output)


@register_flop_formula(torch.ops.spectralforge.wave_matrix_gradient)
def _matrix_flops(pixels, d_products, out_shape=None) -> int:
    return 2 * pixels[0] * pixels[1] * pixels[2] * d_products[2]


@triton.jit
def _wave_matrix_gradient(pixels, d_products, shares, count, bands, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    begin, share, group = tl.program_id(0) * CHUNK, tl.program_id(1), tl.program_id(2)
    total = tl.zeros((CHUNK, FEATURES), tl.float32)
    for block in range(share, tl.cdiv(count, BLOCK), tl.num_programs(1)):
        first, inside = block_rows(block, group, count, BLOCK)
        d = tl.load(d_products + feature_places(first, inside), mask=inside[None, :], other=0.0)
        x = load_spectra(pixels, first, inside, begin, bands, CHUNK).to(d.dtype)
        total = tl.dot(x, tl.trans(d), total, input_precision="ieee")
    band = begin + tl.arange(0, CHUNK)
    row = (group * tl.num_programs(1) + share) * bands + band
    place = row[:, None] * FEATURES + tl.arange(0, FEATURES)[None, :]
    tl.store(shares + place, total, mask=(band < bands)[:, None])
