"""Undo the prediction of tiles on a device: the loader sends the planes of their codes (shards/format/planes.py).

Results are those of the CPU's codec bit for bit: the same operations on fp32 in the same order, each rounded by itself.
"""

import numpy as np
import torch
from torch import Tensor

from pretrain.kernels.launching import usable
from shards.format.planes import BOUND, HIGH_ROW, MISSING, VALUES
from shards.sensors.sensor import NODATA

SCALE = 2.0**-11
"""Value of one unit of a stored coefficient."""


def used_rows(bands: np.ndarray) -> np.ndarray:
    """Return how many rows of height * width bytes the planes of each tile have, int64 (U,).

    Args:
        bands: int32 (U, C, COLUMNS), see PixelwiseCodec.unpack.
    """
    bound, high_row = bands[..., BOUND], bands[..., HIGH_ROW]
    rows = np.where(bound == VALUES, 2, bound >= 0).sum(1)
    return np.maximum(rows, np.where(bound >= 0, high_row + 1, 0).max(1))


def send_planes(planes: Tensor, bands: np.ndarray, device: torch.device) -> Tensor:
    """Copy the used bytes of planes to a GPU without waiting for it; on the CPU return the planes.

    Args:
        planes: int16 (U, C, H, W) in pinned memory.
        bands: int32 (U, C, COLUMNS).
    """
    if device.type == "cpu":
        return planes
    copies = torch.empty(planes.shape, dtype=planes.dtype, device=device)
    copy_used(planes, bands, copies)
    return copies


def copy_used(planes: Tensor, bands: np.ndarray, copies: Tensor) -> None:
    """Copy the used bytes of planes, int16 (U, C, H, W), a range of each tile."""
    pixels = planes.shape[2] * planes.shape[3]
    source, target = (tensor.view(torch.uint8).view(len(tensor), -1) for tensor in (planes, copies))
    for number, rows in enumerate(used_rows(bands).tolist()):
        target[number, : rows * pixels].copy_(source[number, : rows * pixels], non_blocking=True)


def restore_tiles(planes: Tensor, bands: Tensor) -> Tensor:
    """Return tiles, int16 (U, C, H, W).

    Args:
        planes: int16 (U, C, H, W), contiguous: the bytes of each tile's planes (PixelwiseCodec.unpack).
        bands: int32 (U, C, COLUMNS), what each band needs.
    """
    if usable(planes):
        from pretrain.kernels.restore import restore  # imports Triton

        return restore(planes, bands)
    tiles, below = torch.empty_like(planes), [torch.zeros(1, device=planes.device)] * 3
    rows = planes.view(torch.uint8).view(len(planes), 2 * planes.shape[1], -1)
    for band, target in enumerate(tiles.flatten(2).unbind(1)):
        numbers = bands[:, band, :, None]
        target.copy_(_restore_band(rows, numbers, planes[:, band].flatten(1), band, below))
        below = [target.float(), *below[:2]]
    return tiles


def _restore_band(rows: Tensor, numbers: Tensor, values: Tensor, band: int, below: list[Tensor]) -> Tensor:
    """Return the pixels of one band, int16 (U, H * W).

    Args:
        rows: uint8 (U, 2 C, H * W), the planes.
        numbers: int32 (U, COLUMNS, 1), what the band needs.
        values: int16 (U, H * W), the band of tiles that are stored as values.
        band: its number.
        below: float32 (U, H * W), the restored bands one, two and three below.
    """
    bound, high_row = numbers[:, BOUND], numbers[:, HIGH_ROW, 0].long()
    tile = torch.arange(len(rows), device=rows.device)
    high = rows[tile, high_row.clamp(min=0)].int().masked_fill_(high_row[:, None] < 0, 0)
    code = rows[:, band].int() | high << 8
    residual = (code >> 1) ^ -(code & 1)
    prediction = numbers[:, 3].float()
    for coefficient, pixels in zip(numbers[:, :3].unbind(1), below, strict=True):
        prediction = prediction + coefficient.float() * SCALE * pixels
    predicted = (prediction.clamp(-32768, 32767) + 32768.5).int() - 32768
    restored = torch.where(bound == 0, predicted + residual, _bounded(predicted, residual, bound)).short()
    restored = torch.where(bound == VALUES, values, restored)
    return restored.masked_fill_(bound == MISSING, NODATA)


def _bounded(predicted: Tensor, residual: Tensor, bound: Tensor) -> Tensor:
    """Return the values of a band with a bound on the error: two codes are missing values and zeros."""
    symbol = residual.float()
    steps = torch.where(symbol >= 0, symbol - 1, symbol + 1)
    value = (predicted.float() + steps * (2 * bound + 1).float()).clamp_(-32767, 32767).int()
    return value.masked_fill_(residual == -1, 0).masked_fill_(residual == 0, NODATA)
