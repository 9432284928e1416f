"""Kernels of the spectral adapter's forward pass, which is bound by memory: what it recomputes is never written.

A position of the second layer reads 37 bands, and all that it needs of the first layer is one product of these bands
(64, padded) with a table of shifted filters, (64, 7 taps x 32 channels): no unfolded spectra, no first-layer outputs in
memory. The padding's last column is 1, and its row of the table holds the offsets. A program computes a block of pixels
of one batch-norm group. It stores the mean and the squared deviations of its block for the norm's statistics, which are
combined in float64: no atomic sums, so the same call gives the same numbers.

Shapes: G groups, R pixels of a group, B blocks of them, L positions of a layer, C bands.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pretrain.kernels.launching import launch, operator

BLOCK, SMALL_BLOCK = 64, 32
"""Pixels that a program computes at once: 64 wherever that leaves its registers without spills, 32 elsewhere."""

WIDTH, COLUMNS, TAPS = 64, 256, 7
"""Rows and columns of the table of filters, and the taps of the second layer that its columns belong to."""

FIRST, SECOND, THIRD = tl.constexpr(32), tl.constexpr(64), tl.constexpr(128)  # channels
STRIDE, HOP, READ = tl.constexpr(5), tl.constexpr(25), tl.constexpr(37)  # of the second layer, in positions and bands
TOP_TAPS, TOP_STRIDE = tl.constexpr(5), tl.constexpr(3)  # of the third layer
WIDE, ALL = tl.constexpr(WIDTH), tl.constexpr(COLUMNS)
NORM_ROWS = tl.constexpr(4)


# ---- second layer, from pixels ----


def launch_second_layer(
    pixels: Tensor, table: Tensor, weight: Tensor, bias: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """Compute the second convolution, y (G, R, length, 64), and its moments by block, fp32 (G, B, 2, 64).

    Args:
        pixels: (G, R, C) in fp32, fp16 or bf16; so are table and weight.
        table: the first layer's filters with norm, (G, 64, 256).
        weight: (256, 64), its rows beyond 7 x 32 zero.
        bias: fp32 (64,).
        length: L of the second layer.
    """
    groups, count, bands = pixels.shape
    y, moments = _second_outputs(pixels, table, weight, bias, length)
    below = (bands + 2 - 7) // 5 + 1
    grid = (triton.cdiv(count, SMALL_BLOCK), groups)
    arguments = (pixels, table, weight, bias, y, moments, count, bands, below, length)
    launch(_second_layer, grid, *arguments, BLOCK=SMALL_BLOCK)
    return y, moments


def _second_outputs(pixels: Tensor, table: Tensor, weight: Tensor, bias: Tensor, length: int) -> tuple[Tensor, Tensor]:
    groups, count, _ = pixels.shape
    moments = bias.new_empty(groups, triton.cdiv(count, SMALL_BLOCK), 2, 64)
    return pixels.new_empty(groups, count, length, 64), moments


second_layer = operator("stem_second_layer")(launch_second_layer)
second_layer.register_fake(_second_outputs)


@register_flop_formula(torch.ops.spectralforge.stem_second_layer)
def _second_flops(pixels, table, weight, bias, length, out_shape=None) -> int:
    return 2 * pixels[0] * pixels[1] * length * COLUMNS * (WIDTH + 64)


@triton.jit
def block_rows(block, group, count, BLOCK: tl.constexpr):
    """Return the first row of a block of pixels among all, and which of its rows are pixels of the group."""
    return group.to(tl.int64) * count + block * BLOCK, block * BLOCK + tl.arange(0, BLOCK) < count


@triton.jit
def load_matrix(source, STRIDE: tl.constexpr, ROWS: tl.constexpr, NUM_COLUMNS: tl.constexpr):
    """Load a matrix whose rows are STRIDE apart."""
    return tl.load(source + tl.arange(0, ROWS)[:, None] * STRIDE + tl.arange(0, NUM_COLUMNS)[None, :])


@triton.jit
def load_bands(pixels, first, inside, bands, position):
    """Load what a position of the second layer reads: 37 bands, zeros, and a column of ones; (BLOCK, 64)."""
    column = tl.arange(0, WIDE)
    band = HOP * position - 6 + column
    present = inside[:, None] & ((column < READ) & (band >= 0) & (band < bands))[None, :]
    place = tl.arange(0, inside.shape[0])[:, None] * bands + band[None, :]
    x = tl.load(pixels + first * bands + place, mask=present, other=0.0)
    return tl.where((column == WIDE - 1)[None, :], 1.0, x).to(pixels.dtype.element_ty)


@triton.jit
def first_outputs(x, filters, tap, position, below):
    """Compute the first layer's outputs at some taps of a position of the second; zeros for padding.

    Args:
        x: bands, (BLOCK, 64).
        filters: columns of the table, (64, taps x 32), from ``tap`` on.
    """
    place = STRIDE * position - 1 + tap + tl.arange(0, filters.shape[1]) // FIRST
    z = tl.dot(x, filters)
    return tl.where(((place >= 0) & (place < below))[None, :], tl.maximum(z, 0.0), 0.0)


@triton.jit
def row_places(inside, position, length, CHANNELS: tl.constexpr):
    """Return where a block's pixels have a position's channels, from the first pixel on."""
    pixel = tl.arange(0, inside.shape[0])
    return (pixel[:, None] * length + position) * CHANNELS + tl.arange(0, CHANNELS)[None, :]


@triton.jit
def store_rows(y, value, first, inside, position, length, CHANNELS: tl.constexpr):
    """Store a position of a block's pixels to (G, R, length, CHANNELS)."""
    place = row_places(inside, position, length, CHANNELS)
    tl.store(y + first * length * CHANNELS + place, value, mask=inside[:, None])


@triton.jit
def add_moments(mean, squares, value, inside, position):
    """Add a position's mean and squared deviations to those of the positions before (Chan, Golub and LeVeque 1983)."""
    count = tl.sum(inside.to(tl.float32), 0)
    value = tl.where(inside[:, None], value.to(tl.float32), 0.0)
    here = tl.sum(value, 0) / count
    apart = tl.where(inside[:, None], value - here[None, :], 0.0)
    share = 1.0 / (position + 1)
    squares += tl.sum(apart * apart, 0) + (here - mean) * (here - mean) * count * (1.0 - share)
    return mean + (here - mean) * share, squares


@triton.jit
def store_pair(pairs, one, other, block, group, CHANNELS: tl.constexpr):
    """Store two vectors of a block to (G, B, 2, CHANNELS)."""
    target = pairs + (group * tl.num_programs(0) + block) * 2 * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(target, one)
    tl.store(target + CHANNELS, other)


@triton.jit
def _second_layer(
    pixels,
    table,
    weight,
    bias,
    y,
    moments,
    count,
    bands,
    below,
    length,
    BLOCK: tl.constexpr,
):
    block, group = tl.program_id(0), tl.program_id(1)
    first, inside = block_rows(block, group, count, BLOCK)
    filters = load_matrix(table + group * WIDE * ALL, ALL, WIDE, ALL)
    later = load_matrix(weight, SECOND, ALL, SECOND)
    start = tl.load(bias + tl.arange(0, SECOND))
    mean, squares = tl.zeros((SECOND,), tl.float32), tl.zeros((SECOND,), tl.float32)
    for position in range(length):
        x = load_bands(pixels, first, inside, bands, position)
        z = first_outputs(x, filters, 0, position, below).to(x.dtype)
        value = (tl.dot(z, later) + start[None, :]).to(x.dtype)
        store_rows(y, value, first, inside, position, length, SECOND)
        mean, squares = add_moments(mean, squares, value, inside, position)
    store_pair(moments, mean, squares, block, group, SECOND)


# ---- third layer, from the input of the second norm ----


def launch_third_layer(y2: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Compute the third convolution, y (G, R, length, 128), and its moments by block, fp32 (G, B, 2, 128).

    Args:
        y2: (G, R, L, 64), the second convolution.
        norm: the second norm's factor, offset, center and inverse, fp32 (G, 4, 64).
        weight: (5 x 64, 128).
        bias: fp32 (128,).
        length: L of the third layer.
    """
    groups, count, below, _ = y2.shape
    y, moments = _third_outputs(y2, norm, weight, bias, length)
    arguments = (y2, norm, weight, bias, y, moments, count, below, length)
    grid = (triton.cdiv(count, BLOCK), groups)
    launch(_third_layer, grid, *arguments, num_warps=8, BLOCK=BLOCK)
    return y, moments


def _third_outputs(y2: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, length: int) -> tuple[Tensor, Tensor]:
    groups, count = y2.shape[:2]
    moments = bias.new_empty(groups, triton.cdiv(count, BLOCK), 2, 128)
    return y2.new_empty(groups, count, length, 128), moments


third_layer = operator("stem_third_layer")(launch_third_layer)
third_layer.register_fake(_third_outputs)


@register_flop_formula(torch.ops.spectralforge.stem_third_layer)
def _third_flops(y2, norm, weight, bias, length, out_shape=None) -> int:
    return 2 * y2[0] * y2[1] * length * weight[0] * weight[1]


@triton.jit
def load_channels(values, group, number, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Load row ``number`` of a group from (G, ROWS, CHANNELS), as (1, CHANNELS)."""
    return tl.load(values + (group * ROWS + number) * CHANNELS + tl.arange(0, CHANNELS))[None, :]


@triton.jit
def load_rows(y, first, inside, position, length, CHANNELS: tl.constexpr):
    """Load a position of a block's pixels from (G, R, length, CHANNELS) as fp32, zeros beyond its ends."""
    present = inside & (position >= 0) & (position < length)
    place = row_places(inside, position, length, CHANNELS)
    return tl.load(y + first * length * CHANNELS + place, mask=present[:, None], other=0.0).to(tl.float32)


@triton.jit
def second_outputs(y2, norm, group, first, inside, place, below):
    """Compute the second layer's outputs at a position, (BLOCK, 64); zeros for padding."""
    factor = load_channels(norm, group, 0, NORM_ROWS, SECOND)
    offset = load_channels(norm, group, 1, NORM_ROWS, SECOND)
    z = tl.maximum(load_rows(y2, first, inside, place, below, SECOND) * factor + offset, 0.0)
    present = inside & (place >= 0) & (place < below)
    return tl.where(present[:, None], z, 0.0)


@triton.jit
def _third_layer(y2, norm, weight, bias, y, moments, count, below, length, BLOCK: tl.constexpr):
    block, group = tl.program_id(0), tl.program_id(1)
    first, inside = block_rows(block, group, count, BLOCK)
    start = tl.load(bias + tl.arange(0, THIRD))
    mean, squares = tl.zeros((THIRD,), tl.float32), tl.zeros((THIRD,), tl.float32)
    for position in range(length):
        value = tl.zeros((BLOCK, THIRD), tl.float32) + start[None, :]
        for tap in range(TOP_TAPS):
            z = second_outputs(y2, norm, group, first, inside, TOP_STRIDE * position - 1 + tap, below)
            filters = load_matrix(weight + tap * SECOND * THIRD, THIRD, SECOND, THIRD)
            value = tl.dot(z.to(y2.dtype.element_ty), filters, value)
        value = value.to(y2.dtype.element_ty)
        store_rows(y, value, first, inside, position, length, THIRD)
        mean, squares = add_moments(mean, squares, value, inside, position)
    store_pair(moments, mean, squares, block, group, THIRD)


# ---- features ----


def launch_mean_features(y3: Tensor, norm: Tensor) -> Tensor:
    """Compute the mean over positions of the third layer's outputs, (G, R, 128), from y3 (G, R, L, 128)."""
    groups, count, length, _ = y3.shape
    features = _features_output(y3, norm)
    launch(_mean_features, (triton.cdiv(count, BLOCK), groups), y3, norm, features, count, length, BLOCK=BLOCK)
    return features


def _features_output(y3: Tensor, norm: Tensor) -> Tensor:
    return y3.new_empty(y3.shape[0], y3.shape[1], 128)


mean_features = operator("stem_features")(launch_mean_features)
mean_features.register_fake(_features_output)


@triton.jit
def _mean_features(y3, norm, features, count, length, BLOCK: tl.constexpr):
    block, group = tl.program_id(0), tl.program_id(1)
    first, inside = block_rows(block, group, count, BLOCK)
    factor = load_channels(norm, group, 0, NORM_ROWS, THIRD)
    offset = load_channels(norm, group, 1, NORM_ROWS, THIRD)
    total = tl.zeros((BLOCK, THIRD), tl.float32)
    for position in range(length):
        total += tl.maximum(load_rows(y3, first, inside, position, length, THIRD) * factor + offset, 0.0)
    store_rows(features, total / length, first, inside, 0, 1, THIRD)
