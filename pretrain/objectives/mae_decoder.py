"""Masks of patches, and the decoder that predicts what they hide (MAE, arXiv 2111.06377)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.models.attention import Backend
from pretrain.models.patches import sincos_positions
from pretrain.models.recompute import recomputed
from pretrain.models.vit import Block


@dataclass(frozen=True)
class MaskedPatches:
    """Which patches of each sample the encoder sees; both ascending along the grid.

    Attributes:
        visible: int64 (B, V).
        masked: int64 (B, T - V).
    """

    visible: Tensor
    masked: Tensor


def choose_masks(noise: Tensor, mask_ratio: float) -> MaskedPatches:
    """Keep the ``int(T * (1 - mask_ratio))`` patches of smallest noise, (B, T) in [0, 1)."""
    order = noise.argsort(1)
    keep = int(noise.shape[1] * (1 - mask_ratio))
    return MaskedPatches(order[:, :keep].sort(1).values, order[:, keep:].sort(1).values)


class MaeDecoder(nn.Module):
    """Narrow transformer that predicts the pixels of masked patches from the visible tokens.

    Attributes:
        recompute: drop the blocks' activations in training and compute them again in the backward pass.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self, encoder_dim: int, grid: int, outputs: int, width: int, depth: int, heads: int, backend: Backend
    ) -> None:
        super().__init__()
        self.recompute = False
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", sincos_positions(width, grid))
        self.decoder_embed = nn.Linear(encoder_dim, width)
        self.decoder_blocks = nn.ModuleList(Block(width, heads, 4 * width, backend) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, outputs)

    def forward(self, latent: Tensor, masks: MaskedPatches) -> Tensor:
        """Encoder tokens (B, 1 + V, D) to predictions for the masked patches (B, T - V, p*p*C)."""
        tokens = self.decoder_embed(latent).to(self.mask_token.dtype)
        batch, width = tokens.shape[0], tokens.shape[2]
        grid = self.mask_token.expand(batch, self.decoder_pos_embed.shape[1] - 1, -1)
        index = masks.visible[:, :, None].expand(-1, -1, width)
        x = torch.cat([tokens[:, :1], grid.scatter(1, index, tokens[:, 1:])], 1)
        x = x + self.decoder_pos_embed.to(x.dtype)
        recompute = self.recompute and self.training
        *blocks, last = self.decoder_blocks
        for block in blocks:
            x = recomputed(block, recompute, x)
        x = recomputed(last, recompute, x, None, 1 + masks.masked)  # nobody looks at the others' outputs
        return self.decoder_pred(self.decoder_norm(x))
