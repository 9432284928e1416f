"""Masks of patches, and the decoder that predicts what they hide (MAE, arXiv 2111.06377)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.models.activation_checkpointing import Recompute, recomputed
from pretrain.models.attention import Backend
from pretrain.models.patches import gather_tokens, sincos_positions
from pretrain.models.vit import Block, Spread


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
        recompute: which of the blocks' activations are dropped in training, and computed again in the backward pass.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self, encoder_dim: int, grid: int, outputs: int, width: int, depth: int, heads: int, backend: Backend
    ) -> None:
        super().__init__()
        self.recompute: Recompute = False
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", sincos_positions(width, grid))
        self.decoder_embed = nn.Linear(encoder_dim, width)
        self.decoder_blocks = nn.ModuleList(Block(width, heads, 4 * width, backend) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, outputs)

    def forward(self, latent: Tensor, masks: MaskedPatches) -> Tensor:
        """Encoder tokens (B, 1 + V, D) to predictions for the masked patches (B, T - V, p*p*C)."""
        recompute = self.training and self.recompute
        x, spread = self._tokens(latent, masks)
        last = len(self.decoder_blocks) - 1
        for number, block in enumerate(self.decoder_blocks):
            ids = 1 + masks.masked if number == last else None  # nobody looks at the others' outputs
            x = recomputed(block, recompute, x, None, ids, spread if number == 0 else None)
        return self.decoder_pred(self.decoder_norm(x))

    def _tokens(self, latent: Tensor, masks: MaskedPatches) -> tuple[Tensor, Spread]:
        """Distinct tokens (1, B * (1 + V) + T, D) in front of the first block, and how sequences are made of them.

        A mask token is the same in all samples, but for its position: the first block projects it once, not B times.
        """
        own = self.decoder_embed(latent).to(self.mask_token.dtype)
        batch, count, width = own.shape
        positions = self.decoder_pos_embed.to(own.dtype)
        index = masks.visible[:, :, None]
        places = torch.cat(
            [positions[:, :1].expand(batch, -1, -1), gather_tokens(positions.expand(batch, -1, -1), 1 + masks.visible)],
            1,
        )
        hidden = self.mask_token + positions[:, 1:]

        def spread(tokens: Tensor) -> Tensor:
            mine, table = tokens[0].split([batch * count, hidden.shape[1]])
            mine = mine.view(batch, count, -1)
            grid = table.expand(batch, -1, -1).scatter(1, index.expand(-1, -1, table.shape[1]), mine[:, 1:])
            return torch.cat([mine[:, :1], grid], 1)

        return torch.cat([(own + places).view(1, -1, width), hidden], 1), spread
