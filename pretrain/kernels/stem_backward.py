"""Kernels of the spectral adapter's backward pass down to the second layer; stem.py has the forward pass.

Nothing but the gradient of the second layer's ReLU is written for each pixel; the gradients of convolutions' outputs
are recomputed from it where they are needed, here and in stem_weights.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pretrain.kernels.launching import launch, operator
from pretrain.kernels.stem import (
    BLOCK,
    NORM_ROWS,
    SECOND,
    SMALL_BLOCK,
    THIRD,
    TOP_STRIDE,
    block_rows,
    load_channels,
    load_matrix,
    load_rows,
    store_pair,
    store_rows,
)


@triton.jit
def third_relu_gradient(d_features, y3, norm, group, first, inside, position, length):
    """Return y3 and the gradient of the third ReLU's input at a position, (BLOCK, 128), fp32."""
    y = load_rows(y3, first, inside, position, length, THIRD)
    factor = load_channels(norm, group, 0, NORM_ROWS, THIRD)
    offset = load_channels(norm, group, 1, NORM_ROWS, THIRD)
    d = load_rows(d_features, first, inside, 0, 1, THIRD) / length
    return y, tl.where(y * factor + offset > 0, d, 0.0)


@triton.jit
def norm_gradient(d, y, norm, means, group, inside, CHANNELS: tl.constexpr):
    """Return the gradient of a norm's input, (BLOCK, CHANNELS), fp32; zeros where there is no pixel."""
    factor = load_channels(norm, group, 0, NORM_ROWS, CHANNELS)
    center = load_channels(norm, group, 2, NORM_ROWS, CHANNELS)
    shift, slope = load_channels(means, group, 0, 2, CHANNELS), load_channels(means, group, 1, 2, CHANNELS)
    return tl.where(inside[:, None], (d - shift - (y - center) * slope) * factor, 0.0)


@triton.jit
def norm_sums(d, y, norm, group, CHANNELS: tl.constexpr):
    """Return a block's sums of d and of d times the normalized y: the gradients of shift and scale."""
    center = load_channels(norm, group, 2, NORM_ROWS, CHANNELS)
    inverse = load_channels(norm, group, 3, NORM_ROWS, CHANNELS)
    return tl.sum(d, 0), tl.sum(d * (y - center) * inverse, 0)


# ---- third norm ----


def launch_third_sums(d_features: Tensor, y3: Tensor, norm: Tensor) -> Tensor:
    """Compute the third norm's gradients of shift and scale by block, fp32 (G, B, 2, 128).

    Args:
        d_features: gradient of the features, (G, R, 128).
        y3: (G, R, L, 128), the third convolution.
        norm: the third norm's factor, offset, center and inverse, fp32 (G, 4, 128).
    """
    groups, count, length, _ = y3.shape
    sums = _third_sums_output(d_features, y3, norm)
    grid = (triton.cdiv(count, BLOCK), groups)
    launch(_third_sums, grid, d_features, y3, norm, sums, count, length, num_warps=8, BLOCK=BLOCK)
    return sums


def _third_sums_output(d_features: Tensor, y3: Tensor, norm: Tensor) -> Tensor:
    groups, count, _, channels = y3.shape
    return norm.new_empty(groups, triton.cdiv(count, BLOCK), 2, channels)


third_sums = operator("stem_third_sums")(launch_third_sums)
third_sums.register_fake(_third_sums_output)


@triton.jit
def _third_sums(d_features, y3, norm, sums, count, length, BLOCK: tl.constexpr):
    block, group = tl.program_id(0), tl.program_id(1)
    first, inside = block_rows(block, group, count, BLOCK)
    shift, scale = tl.zeros((THIRD,), tl.float32), tl.zeros((THIRD,), tl.float32)
    for position in range(length):
        y, d = third_relu_gradient(d_features, y3, norm, group, first, inside, position, length)
        here = norm_sums(d, y, norm, group, THIRD)
        shift, scale = shift + here[0], scale + here[1]
    store_pair(sums, shift, scale, block, group, THIRD)


# ---- gradient of the second layer's outputs ----


def launch_second_gradient(
    d_features: Tensor, y3: Tensor, norm3: Tensor, means3: Tensor, weight: Tensor, y2: Tensor, norm2: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the second ReLU's input, (G, R, L, 64), and its sums by block, fp32 (G, B, 2, 64).

    Args:
        d_features, y3, norm3: see `third_sums`.
        means3: means over the group of d, and of d times the normalized y3, times inverse, fp32 (G, 2, 128).
        weight: of the third layer, (5 x 64, 128).
        y2, norm2: the second convolution, (G, R, L, 64), and its norm, fp32 (G, 4, 64).
    """
    groups, count, length, _ = y2.shape
    d, sums = _second_gradient_outputs(d_features, y3, norm3, means3, weight, y2, norm2)
    grid = (triton.cdiv(count, SMALL_BLOCK), groups)
    arguments = (d_features, y3, norm3, means3, weight, y2, norm2, d, sums, count, y3.shape[2], length)
    launch(_second_gradient, grid, *arguments, num_warps=8, BLOCK=SMALL_BLOCK)
    return d, sums


def _second_gradient_outputs(
    d_features: Tensor, y3: Tensor, norm3: Tensor, means3: Tensor, weight: Tensor, y2: Tensor, norm2: Tensor
) -> tuple[Tensor, Tensor]:
    groups, count, _, channels = y2.shape
    return torch.empty_like(y2), norm2.new_empty(groups, triton.cdiv(count, SMALL_BLOCK), 2, channels)


second_gradient = operator("stem_second_gradient")(launch_second_gradient)
second_gradient.register_fake(_second_gradient_outputs)


@register_flop_formula(torch.ops.spectralforge.stem_second_gradient)
def _second_gradient_flops(d_features, y3, norm3, means3, weight, y2, norm2, out_shape=None) -> int:
    return 2 * y3[0] * y3[1] * y3[2] * weight[0] * weight[1]


@triton.jit
def _second_gradient(
    d_features,
    y3,
    norm3,
    means3,
    weight,
    y2,
    norm2,
    d2,
    sums,
    count,
    above,
    length,
    BLOCK: tl.constexpr,
):
    block, group = tl.program_id(0), tl.program_id(1)
    first, inside = block_rows(block, group, count, BLOCK)
    factor = load_channels(norm2, group, 0, NORM_ROWS, SECOND)
    offset = load_channels(norm2, group, 1, NORM_ROWS, SECOND)
    shift, scale = tl.zeros((SECOND,), tl.float32), tl.zeros((SECOND,), tl.float32)
    for place in range(length):
        dz = tl.zeros((BLOCK, SECOND), tl.float32)
        for position in range(tl.maximum(place - 1, 0) // TOP_STRIDE, tl.minimum((place + 1) // TOP_STRIDE + 1, above)):
            tap = place + 1 - TOP_STRIDE * position
            y, d = third_relu_gradient(d_features, y3, norm3, group, first, inside, position, above)
            dy = norm_gradient(d, y, norm3, means3, group, inside, THIRD).to(y2.dtype.element_ty)
            filters = load_matrix(weight + tap * SECOND * THIRD, THIRD, SECOND, THIRD)
            dz = tl.dot(dy, tl.trans(filters), dz)
        below = load_rows(y2, first, inside, place, length, SECOND)
        dz = tl.where(below * factor + offset > 0, dz, 0.0)
        store_rows(d2, dz, first, inside, place, length, SECOND)
        here = norm_sums(dz, below, norm2, group, SECOND)
        shift, scale = shift + here[0], scale + here[1]
    store_pair(sums, shift, scale, block, group, SECOND)
