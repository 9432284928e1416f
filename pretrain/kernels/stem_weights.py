"""Kernels of the gradients of the spectral adapter's weights: sums over pixels.

A program adds up a share of the blocks of a group, in a fixed order; shares are added in float64. The first layer's
outputs are recomputed from the pixels, the gradients of convolutions from those of ReLUs (see stem_backward.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pretrain.kernels.launching import launch, operator
from pretrain.kernels.stem import (
    ALL,
    BLOCK,
    COLUMNS,
    FIRST,
    SECOND,
    SMALL_BLOCK,
    THIRD,
    TOP_STRIDE,
    TOP_TAPS,
    WIDE,
    WIDTH,
    block_rows,
    first_outputs,
    load_bands,
    load_matrix,
    load_rows,
    second_outputs,
)
from pretrain.kernels.stem_backward import norm_gradient, third_relu_gradient

SOME_TAPS, SOME = tl.constexpr(4), tl.constexpr(128)
"""Taps, and their columns of the table, of a program that adds up products: with all, registers don't suffice."""

SHARES, SHARE = 32, 512
"""Shares of a group's pixels: at most so many, of at least so many pixels."""


def num_shares(count: int) -> int:
    """Return the number of shares of a group of pixels, which depends on nothing else, so sums don't either."""
    return min(SHARES, triton.cdiv(count, SHARE))


@triton.jit
def store_matrix(target, value, STRIDE: tl.constexpr, ROWS: tl.constexpr, NUM_COLUMNS: tl.constexpr):
    """Store a matrix to rows that are STRIDE apart."""
    tl.store(target + tl.arange(0, ROWS)[:, None] * STRIDE + tl.arange(0, NUM_COLUMNS)[None, :], value)


# ---- third layer ----


def launch_third_weights(
    d_features: Tensor, y3: Tensor, norm3: Tensor, means3: Tensor, y2: Tensor, norm2: Tensor
) -> Tensor:
    """Compute the gradient of the third layer's weights by share, fp32 (G, shares, 5 x 64, 128).

    Args: see `second_gradient` in stem_backward.py.
    """
    groups, count, below, _ = y2.shape
    product = _third_weights_output(d_features, y3, norm3, means3, y2, norm2)
    grid = (TOP_TAPS.value, product.shape[1], groups)
    arguments = (d_features, y3, norm3, means3, y2, norm2, product, count, below, y3.shape[2])
    launch(_third_weights, grid, *arguments, num_warps=8, BLOCK=SMALL_BLOCK)
    return product


def _third_weights_output(
    d_features: Tensor, y3: Tensor, norm3: Tensor, means3: Tensor, y2: Tensor, norm2: Tensor
) -> Tensor:
    return norm2.new_empty(y2.shape[0], num_shares(y2.shape[1]), 5 * 64, 128)


third_weights = operator("stem_third_weights")(launch_third_weights)
third_weights.register_fake(_third_weights_output)


@register_flop_formula(torch.ops.spectralforge.stem_third_weights)
def _third_weights_flops(d_features, y3, norm3, means3, y2, norm2, out_shape=None) -> int:
    return 2 * y3[0] * y3[1] * y3[2] * 5 * 64 * 128


@triton.jit
def _third_weights(
    d_features,
    y3,
    norm3,
    means3,
    y2,
    norm2,
    product,
    count,
    below,
    length,
    BLOCK: tl.constexpr,
):
    tap, share, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    total = tl.zeros((SECOND, THIRD), tl.float32)
    for block in range(share, tl.cdiv(count, BLOCK), tl.num_programs(1)):
        first, inside = block_rows(block, group, count, BLOCK)
        for position in range(length):
            z = second_outputs(y2, norm2, group, first, inside, TOP_STRIDE * position - 1 + tap, below)
            y, d = third_relu_gradient(d_features, y3, norm3, group, first, inside, position, length)
            dy = norm_gradient(d, y, norm3, means3, group, inside, THIRD).to(y2.dtype.element_ty)
            total = tl.dot(tl.trans(z.to(y2.dtype.element_ty)), dy, total)
    part = (group * tl.num_programs(1) + share) * tl.num_programs(0) + tap
    store_matrix(product + part * SECOND * THIRD, total, THIRD, SECOND, THIRD)


# ---- second layer ----


def launch_second_weights(
    pixels: Tensor, table: Tensor, d2: Tensor, y2: Tensor, norm2: Tensor, means2: Tensor
) -> Tensor:
    """Compute the gradient of the second layer's weights by share, fp32 (G, shares, 256, 64).

    Args:
        pixels, table: see `second_layer` in stem.py.
        d2: gradient of the second ReLU's input, (G, R, L, 64).
        y2, norm2, means2: the second convolution, its norm, and means of d2 (as in stem_backward.py).
    """
    product = _second_weights_output(pixels, table, d2, y2, norm2, means2)
    grid = (ALL.value // SOME.value, product.shape[1], len(pixels))
    arguments = (pixels, table, d2, y2, norm2, means2, product, *_sizes(pixels, y2))
    launch(_second_weights, grid, *arguments, num_warps=8, BLOCK=BLOCK)
    return product


def _sizes(pixels: Tensor, y2: Tensor) -> tuple[int, int, int, int]:
    """Return R, C, and L of the first and the second layer."""
    _, count, bands = pixels.shape
    return count, bands, (bands + 2 - 7) // 5 + 1, y2.shape[2]


def _second_weights_output(
    pixels: Tensor, table: Tensor, d2: Tensor, y2: Tensor, norm2: Tensor, means2: Tensor
) -> Tensor:
    return norm2.new_empty(len(pixels), num_shares(pixels.shape[1]), COLUMNS, 64)


second_weights = operator("stem_second_weights")(launch_second_weights)
second_weights.register_fake(_second_weights_output)


@register_flop_formula(torch.ops.spectralforge.stem_second_weights)
def _second_weights_flops(pixels, table, d2, y2, norm2, means2, out_shape=None) -> int:
    return 2 * pixels[0] * pixels[1] * y2[2] * COLUMNS * (WIDTH + 64)


@triton.jit
def second_norm_gradient(d2, y2, norm2, means2, group, first, inside, position, length):
    """Return the gradient of the second convolution at a position, (BLOCK, 64), in the dtype of products."""
    d = load_rows(d2, first, inside, position, length, SECOND)
    y = load_rows(y2, first, inside, position, length, SECOND)
    return norm_gradient(d, y, norm2, means2, group, inside, SECOND).to(y2.dtype.element_ty)


@triton.jit
def _second_weights(
    pixels,
    table,
    d2,
    y2,
    norm2,
    means2,
    product,
    count,
    bands,
    below,
    length,
    BLOCK: tl.constexpr,
):
    tap, share, group = tl.program_id(0) * SOME_TAPS, tl.program_id(1), tl.program_id(2)
    filters = load_matrix(table + group * WIDE * ALL + tap * FIRST, ALL, WIDE, SOME)
    total = tl.zeros((SOME, SECOND), tl.float32)
    for block in range(share, tl.cdiv(count, BLOCK), tl.num_programs(1)):
        first, inside = block_rows(block, group, count, BLOCK)
        for position in range(length):
            x = load_bands(pixels, first, inside, bands, position)
            z = first_outputs(x, filters, tap, position, below).to(x.dtype)
            dy = second_norm_gradient(d2, y2, norm2, means2, group, first, inside, position, length)
            total = tl.dot(tl.trans(z), dy, total)
    target = product + (group * tl.num_programs(1) + share) * ALL * SECOND
    store_matrix(target + tap * FIRST * SECOND, total, SECOND, SOME, SECOND)


# ---- first layer ----


def launch_first_sums(
    pixels: Tensor, table: Tensor, weight: Tensor, d2: Tensor, y2: Tensor, norm2: Tensor, means2: Tensor
) -> Tensor:
    """Compute the products of bands with the gradient of the first ReLU's input by share, fp32 (G, shares, 64, 256).

    The gradient of a first-layer output is a sum over the positions of the second layer that read it, and the product
    is linear in it: nothing is folded. Row 63, of the column of ones, has the sums of the gradient.

    Args:
        weight: of the second layer, (256, 64).
        pixels, table, d2, y2, norm2, means2: see `second_weights`.
    """
    product = _first_sums_output(pixels, table, weight, d2, y2, norm2, means2)
    grid = (ALL.value // SOME.value, product.shape[1], len(pixels))
    arguments = (pixels, table, weight, d2, y2, norm2, means2, product, *_sizes(pixels, y2))
    launch(_first_sums, grid, *arguments, num_warps=8, BLOCK=SMALL_BLOCK)
    return product


def _first_sums_output(
    pixels: Tensor, table: Tensor, weight: Tensor, d2: Tensor, y2: Tensor, norm2: Tensor, means2: Tensor
) -> Tensor:
    return norm2.new_empty(len(pixels), num_shares(pixels.shape[1]), WIDTH, COLUMNS)


first_sums = operator("stem_first_sums")(launch_first_sums)
first_sums.register_fake(_first_sums_output)


@register_flop_formula(torch.ops.spectralforge.stem_first_sums)
def _first_sums_flops(pixels, table, weight, d2, y2, norm2, means2, out_shape=None) -> int:
    return 2 * pixels[0] * pixels[1] * y2[2] * COLUMNS * (2 * WIDTH + 64)


@triton.jit
def _first_sums(
    pixels,
    table,
    weight,
    d2,
    y2,
    norm2,
    means2,
    product,
    count,
    bands,
    below,
    length,
    BLOCK: tl.constexpr,
):
    tap, share, group = tl.program_id(0) * SOME_TAPS, tl.program_id(1), tl.program_id(2)
    filters = load_matrix(table + group * WIDE * ALL + tap * FIRST, ALL, WIDE, SOME)
    later = load_matrix(weight + tap * FIRST * SECOND, SECOND, SOME, SECOND)
    total = tl.zeros((WIDE, SOME), tl.float32)
    for block in range(share, tl.cdiv(count, BLOCK), tl.num_programs(1)):
        first, inside = block_rows(block, group, count, BLOCK)
        for position in range(length):
            x = load_bands(pixels, first, inside, bands, position)
            z = first_outputs(x, filters, tap, position, below)
            dy = second_norm_gradient(d2, y2, norm2, means2, group, first, inside, position, length)
            dz = tl.dot(dy, tl.trans(later))
            d = tl.where(z > 0, dz, 0.0).to(x.dtype)
            total = tl.dot(tl.trans(x), d, total)
    target = product + (group * tl.num_programs(1) + share) * WIDE * ALL
    store_matrix(target + tap * FIRST, total, ALL, WIDE, SOME)
