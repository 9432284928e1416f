"""MAE with the published order of operations, as a baseline for ours.

Images are float; the stem applies Conv3d and BatchNorm3d to every pixel; all tokens are embedded before masking; the
decoder computes outputs for all tokens; the loss works on fp32 copies.
"""

from typing import cast

import torch
from torch import Tensor, nn

from pretrain.models.adapter import LAYERS
from pretrain.models.patches import gather_tokens, patchify
from pretrain.models.vit import SpecViT
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder
from pretrain.objectives.masked_loss import masked_targets
from pretrain.objectives.masks import MaskedPatches


class PlainMaskedAutoencoder(nn.Module):
    """The same network as ``ours``, with its weights; its transformer blocks are ours.

    Args:
        ours: model with a spectral ViT; don't use it afterwards, since the blocks are shared.
    """

    def __init__(self, ours: MaskedAutoencoder) -> None:
        super().__init__()
        encoder, core = cast(SpecViT, ours.encoder), cast(SpecViT, ours.encoder).core
        self.norm_pix, self.patch_size = ours.norm_pix, encoder.patch_size
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in LAYERS:
            convolution = nn.Conv3d(inputs, outputs, (kernel, 1, 1), (stride, 1, 1), (1, 0, 0))
            layers += [convolution, nn.BatchNorm3d(outputs), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        self.stem.load_state_dict(encoder.spectral_adapter.state_dict())
        proj = core.patch_embed.proj
        self.proj = nn.Conv2d(proj.weight.shape[1], proj.weight.shape[0], encoder.patch_size, encoder.patch_size)
        self.proj.load_state_dict(proj.state_dict())
        self.cls_token, self.blocks, self.norm = core.cls_token, core.blocks, core.norm
        self.register_buffer("pos_embed", core.pos_embed)
        self.decoder = ours.decoder
        self.to(proj.weight.device)

    def forward(self, images: Tensor, masks: MaskedPatches) -> Tensor:
        """Return losses (B,) of normalized images (B, C, H, W)."""
        positions = cast(Tensor, self.pos_embed)
        tokens = self.proj(self.stem(images[:, None]).mean(2)).flatten(2).transpose(1, 2) + positions[:, 1:]
        cls = (self.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        x = torch.cat([cls, gather_tokens(tokens, masks.visible)], 1)
        for block in self.blocks:
            x = block(x)
        prediction = self._decode(self.norm(x), masks.visible, masks.masked)
        truth = gather_tokens(patchify(images, self.patch_size), masks.masked)
        return (prediction.float() - masked_targets(truth, self.norm_pix)).square().flatten(1).mean(1)

    def _decode(self, latent: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        decoder = self.decoder
        tokens = decoder.decoder_embed(latent).to(decoder.mask_token.dtype)
        grid = decoder.mask_token.expand(len(tokens), decoder.decoder_pos_embed.shape[1] - 1, -1)
        grid = grid.scatter(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]), tokens[:, 1:])
        x = torch.cat([tokens[:, :1], grid], 1) + decoder.decoder_pos_embed.to(tokens.dtype)
        for block in decoder.decoder_blocks:
            x = block(x)
        return decoder.decoder_pred(decoder.decoder_norm(gather_tokens(x[:, 1:], masked)))
