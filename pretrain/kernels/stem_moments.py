"""Moments of the spectra for the norm of the first layer, in one reading of the pixels (see spectral_moments.py).

A window of 32 columns holds the 27 bands that a block of five positions reads, as the first band and the differences of
neighbors, and a column of ones: the product of the window with itself has their sums in its last row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pretrain.kernels.launching import launch, operator
from pretrain.kernels.stem import block_rows
from pretrain.kernels.stem_weights import num_shares, store_matrix

BLOCK, WINDOW, USED, HOP = 64, 32, 27, 25
"""Pixels of a program at once; columns of a window, those that hold bands, and bands from a window to the next."""

COLUMNS, BANDS, STEP = tl.constexpr(WINDOW), tl.constexpr(USED), tl.constexpr(HOP)


def launch_window_moments(pixels: Tensor, windows: int) -> Tensor:
    """Compute the products of each window with itself by share of the pixels, fp32 (G, shares, windows, 32, 32).

    Args:
        pixels: (G, R, C).
    """
    products = _output(pixels, windows)
    groups, count, bands = pixels.shape
    launch(_window_moments, (windows, products.shape[1], groups), pixels, products, count, bands, BLOCK=BLOCK)
    return products


def _output(pixels: Tensor, windows: int) -> Tensor:
    shape = len(pixels), num_shares(pixels.shape[1]), windows, WINDOW, WINDOW
    return pixels.new_empty(shape, dtype=torch.float32)


window_moments = operator("stem_window_moments")(launch_window_moments)
window_moments.register_fake(_output)


@register_flop_formula(torch.ops.spectralforge.stem_window_moments)
def _flops(pixels, windows, out_shape=None) -> int:
    return 2 * pixels[0] * pixels[1] * windows * WINDOW**2


@triton.jit
def load_window(pixels, first, inside, bands, begin):
    """Load columns of a window from band ``begin`` on, (BLOCK, 32), fp32; zeros where there is no band."""
    column = tl.arange(0, COLUMNS)
    band = begin + column
    present = inside[:, None] & ((column < BANDS) & (band >= 0) & (band < bands))[None, :]
    place = tl.arange(0, inside.shape[0])[:, None] * bands + band[None, :]
    return tl.load(pixels + first * bands + place, mask=present, other=0.0).to(tl.float32)


@triton.jit
def _window_moments(pixels, products, count, bands, BLOCK: tl.constexpr):
    window, share, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS, COLUMNS), tl.float32)
    for block in range(share, tl.cdiv(count, BLOCK), tl.num_programs(1)):
        first, inside = block_rows(block, group, count, BLOCK)
        x = load_window(pixels, first, inside, bands, STEP * window - 1)
        before = load_window(pixels, first, inside, bands, STEP * window - 2)
        x -= tl.where((column > 0)[None, :], before, 0.0)
        x = tl.where((column == COLUMNS - 1)[None, :], inside[:, None].to(tl.float32), x)
        total = tl.dot(tl.trans(x), x, total, input_precision="ieee")
    part = (group * tl.num_programs(1) + share) * tl.num_programs(0) + window
    store_matrix(products + part * COLUMNS * COLUMNS, total, COLUMNS, COLUMNS, COLUMNS)
