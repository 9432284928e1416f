"""Masked autoencoding of hyperspectral tiles (MAE, arXiv 2111.06377, as SpectralEarth trains it).

Patches are masked in space, all bands at once. The target is the patch's own pixels, (row, column,
band), normalised per patch with unbiased variance; the loss is the mean squared error over masked patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.models.attention import Backend
from pretrain.models.patches import gather_tokens, patchify, sincos_positions
from pretrain.models.vit import Block, ViTEncoder


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


def masked_targets(patches: Tensor, norm_pix: bool) -> Tensor:
    """Patches (B, M, p*p, C) to what the decoder has to predict, (B, M, p*p*C)."""
    target = patches.flatten(2)
    if norm_pix:
        variance, mean = torch.var_mean(target, -1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    return target


class MaeDecoder(nn.Module):
    """Narrow transformer that predicts the pixels of masked patches from the visible tokens."""

    decoder_pos_embed: Tensor

    def __init__(
        self, encoder_dim: int, grid: int, outputs: int, width: int, depth: int, heads: int, backend: Backend
    ) -> None:
        super().__init__()
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
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(gather_tokens(x[:, 1:], masks.masked)))


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder and loss.

    Args:
        encoder: its positions should be fixed (``encoder.core.fix_positions()``) for training.
        bands: C.
        mask_ratio: share of patches that the encoder doesn't see.
        norm_pix: normalise the target per patch.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
    """

    def __init__(
        self,
        encoder: ViTEncoder,
        bands: int,
        mask_ratio: float = 0.9,
        norm_pix: bool = True,
        decoder_width: int = 512,
        decoder_depth: int = 1,
        decoder_heads: int = 16,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.mask_ratio, self.norm_pix = mask_ratio, norm_pix
        self.encoder = encoder
        outputs = encoder.patch_size**2 * bands
        self.decoder = MaeDecoder(
            encoder.feature_dim, encoder.grid, outputs, decoder_width, decoder_depth, decoder_heads, backend
        )

    @property
    def num_patches(self) -> int:
        """T: numbers of noise that a sample's mask takes."""
        return self.encoder.grid**2

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct the masked patches of normalised images (B, C, H, W) by mask noise (B, T).

        Returns:
            Loss of each sample, float32 (B,); prediction (B, M, p*p*C); grid ids of the masked patches (B, M).
        """
        masks = choose_masks(noise, self.mask_ratio)
        patches = patchify(images, self.encoder.patch_size)
        latent = self.encoder.tokens(gather_tokens(patches, masks.visible), masks.visible)
        prediction = self.decoder(latent, masks)
        target = masked_targets(gather_tokens(patches, masks.masked), self.norm_pix)
        return (prediction.float() - target).square().flatten(1).mean(1), prediction, masks.masked

    def reconstruct(self, image: Tensor, prediction: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Patches of one normalised image (C, H, W), true and as predicted, each (T, p*p, C).

        Where targets were normalised per patch, the prediction is put back on the true patch's mean and
        spread, as usual for pictures: it shows the predicted shape, not the level. Uses no weights.
        """
        truth = patchify(image[None], self.encoder.patch_size)[0]
        predicted = truth.clone()
        hidden = prediction.float().view(len(masked), *truth.shape[1:])
        if self.norm_pix:
            variance, mean = torch.var_mean(truth[masked].flatten(1), -1, keepdim=True)
            hidden = hidden * (variance + 1e-6).sqrt()[..., None] + mean[..., None]
        predicted[masked] = hidden
        return truth, predicted
