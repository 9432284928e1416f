"""Tiles from the planes of their codes: the prediction of shards/format undone in one pass, bit for bit as on the CPU.

A program restores a block of pixels of one tile, band after band, and keeps the three bands below in registers.
Products and sums are rounded one by one, as the format says: the kernel is launched without fused operations.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pretrain.kernels.launching import launch, operator
from shards.format import planes as layout
from shards.sensors.sensor import NODATA

BLOCK = 1024
COLUMNS, BOUND, HIGH_ROW = (tl.constexpr(value) for value in (layout.COLUMNS, layout.BOUND, layout.HIGH_ROW))
VALUES, MISSING = tl.constexpr(layout.VALUES), tl.constexpr(NODATA)


def launch_restore(planes: Tensor, bands: Tensor) -> Tensor:
    """Restore tiles, int16 (U, C, H, W).

    Args:
        planes: int16 (U, C, H, W), the bytes of each tile's planes (PixelwiseCodec.unpack).
        bands: int32 (U, C, COLUMNS), what each band needs.
    """
    planes, bands = planes.contiguous(), bands.contiguous()
    tiles = torch.empty_like(planes)
    count, pixels = planes.shape[1], planes.shape[2] * planes.shape[3]
    grid = (triton.cdiv(pixels, BLOCK), len(planes))
    arguments = (planes, planes.view(torch.uint8), bands, tiles, count, pixels)
    launch(_restore, grid, *arguments, enable_fp_fusion=False, BLOCK=BLOCK)
    return tiles


restore = operator("restore_tiles")(launch_restore)


@restore.register_fake
def _(planes: Tensor, bands: Tensor) -> Tensor:
    return torch.empty_like(planes, memory_format=torch.contiguous_format)


@triton.jit
def _restore(values, planes, bands, tiles, count, pixels, BLOCK: tl.constexpr):
    block, tile = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    first, rows = tile * count * pixels + pixel, planes + tile * 2 * count * pixels + pixel
    zeros = tl.zeros((BLOCK,), tl.float32)
    below1, below2, below3 = zeros, zeros, zeros
    for band in range(count):
        numbers = bands + (tile * count + band) * COLUMNS
        bound, high_row = tl.load(numbers + BOUND), tl.load(numbers + HIGH_ROW)
        is_coded = inside & (bound >= 0)
        low = tl.load(rows + band * pixels, mask=is_coded, other=0)
        high = tl.load(rows + high_row * pixels, mask=is_coded & (high_row >= 0), other=0)
        code = low.to(tl.int32) | (high.to(tl.int32) << 8)
        residual = (code >> 1) ^ -(code & 1)
        prediction = tl.load(numbers + 3).to(tl.float32) + scaled(numbers) * below1
        prediction = prediction + scaled(numbers + 1) * below2
        prediction = prediction + scaled(numbers + 2) * below3
        cut = tl.minimum(tl.maximum(prediction, -32768.0), 32767.0)
        predicted = (cut + 32768.5).to(tl.int32) - 32768
        value = tl.where(bound == 0, predicted + residual, bounded(predicted, residual, bound)).to(tl.int16)
        stored = tl.load(values + first + band * pixels, mask=inside & (bound == VALUES), other=MISSING)
        value = tl.where(bound < 0, stored, value)
        tl.store(tiles + first + band * pixels, value, mask=inside)
        below1, below2, below3 = value.to(tl.float32), below1, below2


@triton.jit
def scaled(number):
    """Load a coefficient, which is stored in units of 2**-11."""
    return tl.load(number).to(tl.float32) * 0.00048828125


@triton.jit
def bounded(predicted, residual, bound):
    """Return the values of a band with a bound on the error: two codes are missing values and zeros."""
    symbol = residual.to(tl.float32)
    steps = tl.where(symbol >= 0, symbol - 1.0, symbol + 1.0)
    value = predicted.to(tl.float32) + steps * (2 * bound + 1).to(tl.float32)
    value = tl.minimum(tl.maximum(value, -32767.0), 32767.0).to(tl.int32)
    return tl.where(residual == 0, MISSING, tl.where(residual == -1, 0, value))
