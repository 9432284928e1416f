"""Masks as the objective passes them."""

import torch
from torch import Tensor

from pretrain.objectives.masks import MaskedPatches, choose_masks


def masks_of(noise: Tensor, mask_ratio: float, decode_share: float = 1.0) -> MaskedPatches:
    """Return the masks that noise (B, T) decides."""
    return MaskedPatches(*map(torch.from_numpy, choose_masks(noise.numpy(), mask_ratio, decode_share)))
