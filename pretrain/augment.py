"""Crops, flips and mask noise, keyed by the sample's number: the same on any rank, after any resume.

Parameters are drawn on the host from (seed, sample number); pixels are cut, normalised and resized on
the device, from integers.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.models import Normaliser
from shards import keyed

ASPECT = (3 / 4, 4 / 3)
"""Range of width / height of a resized crop."""


def random_crops(
    tiles: Tensor,
    samples: np.ndarray,
    seed: int,
    size: int,
    crop_scale: tuple[float, float] | None,
    flip: bool,
    normalise: Normaliser,
) -> Tensor:
    """Cut one crop from each tile.

    Args:
        tiles: int16 (B, C, H, W) on the device.
        samples: sample numbers (B,), which key the draw.
        size: height and width of the result in pixels.
        crop_scale: range of the crop's share of the tile's area; None cuts ``size`` pixels unresampled.
        flip: mirror each axis with probability 1/2.

    Returns:
        Normalised float32 (B, C, size, size).
    """
    height, width = tiles.shape[-2:]
    draws = keyed.uniform(keyed.key(seed, "crop"), samples, 6)
    images = []
    for tile, draw in zip(tiles, draws, strict=True):
        top, left, rows, columns = crop_box(draw[:4], height, width, size, crop_scale)
        crop = normalise(tile[:, top : top + rows, left : left + columns])
        if (rows, columns) != (size, size):
            crop = F.interpolate(crop[None], (size, size), mode="bilinear", align_corners=False)[0]
        axes = [axis for axis, toss in ((1, draw[4]), (2, draw[5])) if flip and toss < 0.5]
        images.append(crop.flip(axes) if axes else crop)
    return torch.stack(images)


def crop_box(
    draw: np.ndarray, height: int, width: int, size: int, crop_scale: tuple[float, float] | None
) -> tuple[int, int, int, int]:
    """(top, left, rows, columns) in pixels from four numbers in [0, 1): area, aspect, top, left."""
    if crop_scale is None:
        rows, columns = size, size
    else:
        area = height * width * (crop_scale[0] + draw[0] * (crop_scale[1] - crop_scale[0]))
        aspect = math.exp(math.log(ASPECT[0]) + draw[1] * math.log(ASPECT[1] / ASPECT[0]))
        rows = min(height, max(1, round(math.sqrt(area / aspect))))
        columns = min(width, max(1, round(math.sqrt(area * aspect))))
    top = int(draw[2] * (height - rows + 1))
    left = int(draw[3] * (width - columns + 1))
    return top, left, rows, columns


def centre_crops(tiles: Tensor, size: int, resize: bool, normalise: Normaliser) -> Tensor:
    """Evaluation view: the whole tile resized, or its centre unresampled; float32 (B, C, size, size)."""
    height, width = tiles.shape[-2:]
    if resize:
        images = normalise(tiles)
        same = (height, width) == (size, size)
        return images if same else F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    top, left = (height - size) // 2, (width - size) // 2
    return normalise(tiles[:, :, top : top + size, left : left + size])


def mask_noise(samples: np.ndarray, seed: int, patches: int, device: torch.device, name: str = "mask") -> Tensor:
    """Noise in [0, 1) that decides which patches are masked, float32 (B, patches)."""
    noise = keyed.uniform(keyed.key(seed, name), samples, patches).astype(np.float32)
    return torch.from_numpy(noise).to(device, non_blocking=True)
