"""The decoder that predicts masked patches (MAE, arXiv 2111.06377)."""

from typing import cast

import torch
from torch import Tensor, nn

from pretrain.models.attention import Backend
from pretrain.models.patches import gather_tokens, sincos_positions
from pretrain.models.spectrum import Spectrum
from pretrain.models.transformer import Block, Spread
from pretrain.objectives.band_prediction import BandPrediction
from pretrain.objectives.masks import MaskedPatches


class MaeDecoder(nn.Module):
    """Narrow transformer that predicts the pixels of masked patches from the visible tokens.

    Args:
        encoder_dim: features of the encoder's tokens.
        grid: patches per side of an image.
        pixels: of a patch.
        bands: C.
        width, depth, heads, backend: of the blocks.
        by_wavelength: predict any bands that are asked for, not C fixed ones.
    """

    no_weight_decay = ("mask_token",)
    decoder_pos_embed: Tensor

    def __init__(
        self,
        encoder_dim: int,
        grid: int,
        pixels: int,
        bands: int,
        width: int,
        depth: int,
        heads: int,
        backend: Backend,
        by_wavelength: bool = False,
    ) -> None:
        super().__init__()
        self.bands = bands
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", sincos_positions(width, grid))
        self.decoder_embed = nn.Linear(encoder_dim, width)
        self.decoder_blocks = nn.ModuleList(Block(width, heads, 4 * width, backend) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = BandPrediction(width, pixels) if by_wavelength else nn.Linear(width, pixels * bands)

    def forward(self, latent: Tensor, masks: MaskedPatches, bands: Spectrum | None = None) -> Tensor:
        """Map encoder tokens (B, 1 + V, D) to predictions for the masked patches (B, M, p*p*C).

        Args:
            bands: to predict, by wavelength; those without width are 0.
        """
        x, spread = self._tokens(latent, masks)
        last = len(self.decoder_blocks) - 1
        for number, block in enumerate(self.block_list):
            ids = self._places(masks) if number == last else None  # the outputs of other tokens are not used
            x = block.run(x, None, ids, spread if number == 0 else None)
        return self.decoder_pred(self.decoder_norm(x), *(() if bands is None else (bands,)))

    @property
    def num_patches(self) -> int:
        """T, patches of an image."""
        return self.decoder_pos_embed.shape[1] - 1

    @property
    def block_list(self) -> list[Block]:
        return cast(list[Block], list(self.decoder_blocks))

    def flops(self, visible: int, masked: int, micro_batch: int) -> int:
        """Operations of a forward on one sample of a micro batch.

        The first block projects mask tokens once for the whole micro batch, the last makes outputs of masked tokens
        alone.
        """
        width, depth = self.decoder_embed.out_features, len(self.decoder_blocks)
        tokens, distinct = 1 + visible + masked, 1 + visible + self.num_patches / micro_batch
        projected = 6 * width**2 * (distinct + (depth - 1) * tokens)
        finished = (2 * width**2 * 9 + 4 * tokens * width) * (masked + (depth - 1) * tokens)
        return self._outer_flops(visible, masked) + round(projected) + finished

    def recomputed_flops(self, visible: int, masked: int, micro_batch: int) -> int:
        """Operations that activation checkpointing of blocks repeats: all but each block's last product."""
        width, depth = self.decoder_embed.out_features, len(self.decoder_blocks)
        last_products = 8 * width**2 * (masked + (depth - 1) * (1 + visible + masked))
        return self.flops(visible, masked, micro_batch) - self._outer_flops(visible, masked) - last_products

    def _outer_flops(self, visible: int, masked: int) -> int:
        """Operations outside of the blocks: embedding of visible tokens, prediction of masked ones."""
        last = self.decoder_pred
        predicted = last.flops(self.bands) if isinstance(last, BandPrediction) else 2 * last.weight.numel()
        return 2 * (1 + visible) * self.decoder_embed.weight.numel() + masked * predicted

    def _tokens(self, latent: Tensor, masks: MaskedPatches) -> tuple[Tensor, Spread]:
        """Return the distinct tokens (1, B * (1 + V) + T, D) for the first block, and how sequences consist of them.

        Mask tokens of a position are equal in all samples: the first block projects them once, not B times. Sequences
        are in the order of the grid, or where some masked patches are left out, visible tokens come first.
        """
        embedded = self.decoder_embed(latent).to(self.mask_token.dtype)
        batch, count, width = embedded.shape
        positions = self.decoder_pos_embed.to(embedded.dtype)
        index = masks.visible[:, :, None]
        visible_positions = torch.cat(
            [positions[:, :1].expand(batch, -1, -1), gather_tokens(positions.expand(batch, -1, -1), 1 + masks.visible)],
            1,
        )
        hidden = self.mask_token + positions[:, 1:]

        def spread(tokens: Tensor) -> Tensor:
            visible, table = tokens[0].split([batch * count, hidden.shape[1]])
            visible, table = visible.view(batch, count, -1), table.expand(batch, -1, -1)
            if not self._has_whole_grid(masks):
                return torch.cat([visible, gather_tokens(table, masks.masked)], 1)
            grid = table.scatter(1, index.expand(-1, -1, table.shape[2]), visible[:, 1:])
            return torch.cat([visible[:, :1], grid], 1)

        return torch.cat([(embedded + visible_positions).view(1, -1, width), hidden], 1), spread

    def _places(self, masks: MaskedPatches) -> Tensor:
        """Return where the masked patches are in the sequences, (B, M)."""
        if self._has_whole_grid(masks):
            return 1 + masks.masked
        batch, decoded = masks.masked.shape
        begin = 1 + masks.visible.shape[1]
        return torch.arange(begin, begin + decoded, device=masks.masked.device).expand(batch, -1)

    def _has_whole_grid(self, masks: MaskedPatches) -> bool:
        return masks.visible.shape[1] + masks.masked.shape[1] == self.num_patches
