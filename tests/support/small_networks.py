"""A masked autoencoder of two thin blocks, and drawn images for it."""

import torch

from pretrain.models.vit import SpecViT
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder


def small_autoencoder(decoder_width: int = 16) -> MaskedAutoencoder:
    """Return an autoencoder for 80 bands and 8 px, with uninitialized weights."""
    encoder = SpecViT(8, 4, width=16, depth=2, heads=2, mlp_hidden=32, bn_group=2)
    return MaskedAutoencoder(encoder, 80, 0.5, True, decoder_width=decoder_width, decoder_heads=2)


def drawn(*shape: int) -> torch.Tensor:
    """Return normal values, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
