"""Which patches of a tile the encoder sees and which ones the decoder predicts, drawn on the host.

CPU and GPU therefore have equal masks, and a step sorts nothing.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from shards.order.random_bits import fold_in, uniform


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


def count_patches(patches: int, mask_ratio: float) -> tuple[int, int]:
    """Count the visible and the masked ones of an image's patches."""
    visible = int(patches * (1 - mask_ratio))
    return visible, patches - visible


def choose_masks(noise: np.ndarray, mask_ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Keep the patches of smallest noise, (B, T) in [0, 1); return visible and masked ones as in `MaskedPatches`."""
    order = noise.argsort(1, kind="stable")
    visible, _ = count_patches(noise.shape[1], mask_ratio)
    return np.sort(order[:, :visible], 1), np.sort(order[:, visible:], 1)


def mask_noise(samples: np.ndarray, seed: int, patches: int, name: str = "mask") -> np.ndarray:
    """Draw noise in [0, 1) that decides which patches are masked, float32 (B, patches)."""
    return uniform(fold_in(seed, name), samples, patches).astype(np.float32)
