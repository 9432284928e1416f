"""Which patches of a tile the encoder sees and which ones the decoder predicts, drawn on the host.

CPU and GPU therefore have equal masks, and a step sorts nothing.
"""

import math
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from shards.order.random_bits import fold_in, uniform

TUBE = 2
"""Side of a tube in patches."""


class MaskedPatches(NamedTuple):
    """Patches of each sample, by their place in the grid, ascending.

    Attributes:
        visible: int64 (B, V), those that the encoder sees.
        masked: int64 (B, M), those that the decoder predicts.
    """

    visible: Tensor
    masked: Tensor

    @classmethod
    def in_order(cls, batch: int, counts: tuple[int, int], device: str = "cpu") -> Self:
        """Mask the last patches of each image, where numbers of patches alone matter."""
        ids = torch.arange(sum(counts), device=device).expand(batch, -1)
        return cls(*ids.split(counts, 1))


Masking = Literal["spatial", "spectral", "decoupled", "tubes"]
"""What is hidden: patches, bands of all patches, both independently, or patches in blocks of 2 x 2."""


def count_patches(
    patches: int, mask_ratio: float, decode_share: float = 1.0, masking: Masking = "spatial"
) -> tuple[int, int]:
    """Count an image's patches that are visible, and those that are decoded: a share of the masked ones, rounded up.

    With ``spectral`` masking all patches are visible, and a share of them is decoded.
    """
    if masking == "spectral":
        return patches, math.ceil(round(decode_share * patches, 6))
    visible = int(patches * (1 - mask_ratio))
    return visible, math.ceil(round(decode_share * (patches - visible), 6))  # 0.7 * 10 is 7.000000000000001


def choose_masks(
    noise: np.ndarray, mask_ratio: float, decode_share: float = 1.0, masking: Masking = "spatial"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of `MaskedPatches`: patches of smallest noise, (B, T) in [0, 1), are visible, the next decoded."""
    order = noise.argsort(1, kind="stable")
    visible, decoded = count_patches(noise.shape[1], mask_ratio, decode_share, masking)
    if masking == "spectral":
        return np.sort(order, 1), np.sort(order[:, :decoded], 1)
    return np.sort(order[:, :visible], 1), np.sort(order[:, visible : visible + decoded], 1)


def mask_noise(
    samples: np.ndarray, seed: int, patches: int, name: str = "mask", masking: Masking = "spatial"
) -> np.ndarray:
    """Draw noise in [0, 1) that decides which patches of a square grid are masked, float32 (B, patches).

    With ``tubes`` the patches of a block are next to each other in the order of noise.
    """
    noise = uniform(fold_in(seed, name), samples, patches)
    if masking == "tubes":
        grid = math.isqrt(patches)
        rows, columns = np.divmod(np.arange(patches), grid)
        first = rows // TUBE * TUBE * grid + columns // TUBE * TUBE  # of each patch's block
        noise = (np.floor(noise[:, first] * 2**16) + noise) / 2**16
    return noise.astype(np.float32)
