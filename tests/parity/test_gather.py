"""Gathering the visible patches before the spectral stem gives what the whole image would give.

The reference is written anew here, from torch's own Conv3d, BatchNorm3d and Conv2d on whole images.
"""

import numpy as np
import pytest
import torch
from support.masks import masks_of
from torch import nn
from torch.nn import functional as F

from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.initialize import initialize
from pretrain.models.patches import gather_tokens, patchify
from pretrain.models.registry import build_encoder
from pretrain.models.vit import SpecViT
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder

SIZE = 16


def _encoder(patch_size: int, bn_group: int | None = None) -> SpecViT:
    """Two blocks, every weight and buffer away from its neutral value."""
    encoder = SpecViT(SIZE, patch_size, width=32, depth=2, heads=2, mlp_hidden=64, bn_group=bn_group)
    initialize(encoder, "gather", 5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.dim() == 1:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return encoder


def _images(bands: int, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, bands, SIZE, SIZE, generator=torch.Generator().manual_seed(bands))


class WholeImageStem(nn.Sequential):
    """The published adapter: Conv3d, BatchNorm3d, ReLU three times on (B, 1, C, H, W), then the mean."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        layers = []
        for inputs, outputs, kernel, stride in ((1, 32, 7, 5), (32, 64, 7, 5), (64, 128, 5, 3)):
            convolution = nn.Conv3d(inputs, outputs, (kernel, 1, 1), (stride, 1, 1), (1, 0, 0))
            layers += [convolution, nn.BatchNorm3d(outputs), nn.ReLU()]
        super().__init__(*layers)
        self.load_state_dict(weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images[:, None]).mean(2)


def _whole_image_tokens(encoder: SpecViT, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Stem and projection on all pixels, positions on all tokens, and only then the visible ones."""
    weights = encoder.state_dict()
    core = encoder.vit_core
    names = [name for name in weights if name.startswith("spectral_adapter.")]
    stem = WholeImageStem({name.split(".", 1)[1]: weights[name] for name in names}).eval()
    proj = core.patch_embed.proj
    grid = F.conv2d(stem(images), proj.weight, proj.bias, stride=encoder.patch_size)
    tokens = grid.flatten(2).transpose(1, 2) + core.pos_embed[:, 1:]
    visible = torch.stack([tokens[sample, ids[sample]] for sample in range(len(images))])
    cls = (core.cls_token + core.pos_embed[:, :1]).expand(len(images), 1, -1)
    x = torch.cat([cls, visible], 1)
    for block in core.blocks:
        query, key, value = (
            part.unflatten(2, (2, 16)).transpose(1, 2) for part in block.attn.qkv(block.norm1(x)).chunk(3, -1)
        )
        weighed = (query @ key.transpose(2, 3) / 4.0).softmax(-1) @ value
        x = x + block.attn.proj(weighed.transpose(1, 2).flatten(2))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return core.norm(x)


@pytest.mark.parametrize("patch_size", [4, 8])
@pytest.mark.parametrize("bands", [202, 150, 224, 198])
def test_tokens_of_visible_patches_are_those_of_the_whole_image(bands, patch_size):
    encoder = _encoder(patch_size).eval()
    images = _images(bands)
    noise = torch.rand(3, encoder.grid**2, generator=torch.Generator().manual_seed(2))
    visible = masks_of(noise, 0.5).visible
    with torch.no_grad():
        gathered = encoder.tokens(gather_tokens(patchify(images, patch_size), visible), visible)
        whole = _whole_image_tokens(encoder, images, visible)
    torch.testing.assert_close(gathered, whole, rtol=1e-5, atol=1e-5)  # measured: 1.4e-6 absolute


@pytest.mark.parametrize("patch_size", [4, 8])
def test_everything_visible_is_the_image_itself(patch_size):
    encoder = _encoder(patch_size).eval()
    images, ids = _images(202), torch.arange(encoder.grid**2).expand(3, -1)
    with torch.no_grad():
        whole = _whole_image_tokens(encoder, images, ids)
        torch.testing.assert_close(encoder(images), whole[:, 0], rtol=1e-5, atol=1e-5)
        dense = encoder.dense_features(images)
        for row in range(encoder.grid):
            for column in range(encoder.grid):
                token = whole[:, 1 + row * encoder.grid + column]
                torch.testing.assert_close(dense[:, :, row, column], token, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch_size", [4, 8])
def test_loss_is_that_of_the_whole_image(patch_size):
    """Decoder input from the whole-image tokens, target cut from the image by hand."""
    encoder = _encoder(patch_size)
    model = MaskedAutoencoder(encoder, 202, 0.5, True, decoder_width=32, decoder_heads=2).eval()
    initialize(model.decoder, "decoder", 6)
    images = _images(202)
    noise = torch.rand(3, encoder.grid**2, generator=torch.Generator().manual_seed(3))
    masks = masks_of(noise, 0.5)
    with torch.no_grad():
        losses, _, _, _ = model(images, masks)
        prediction = model.decoder(_whole_image_tokens(encoder, images, masks.visible), masks).numpy()
    for sample in range(3):
        squares = []
        for number, patch in enumerate(masks.masked[sample].tolist()):
            row, column = (patch // encoder.grid) * patch_size, (patch % encoder.grid) * patch_size
            pixels = images[sample, :, row : row + patch_size, column : column + patch_size].numpy()
            target = pixels.transpose(1, 2, 0).astype(np.float64).ravel()  # row, column, band
            target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            squares.append((prediction[sample, number] - target) ** 2)
        assert float(losses[sample]) == pytest.approx(np.mean(squares), rel=1e-5)  # measured: 8e-8


@pytest.mark.parametrize("bands", [202, 150, 224, 198])
def test_training_statistics_are_those_of_the_whole_image_when_all_is_visible(bands):
    encoder = _encoder(4)
    adapter, images = encoder.spectral_adapter.train(), _images(bands)
    stem = WholeImageStem(adapter.state_dict()).train()
    features = adapter(patchify(images, 4).flatten(1, 2)).unflatten(1, (16, 16))
    whole = patchify(stem(images), 4)
    torch.testing.assert_close(features, whole, rtol=1e-5, atol=1e-5)  # measured: 1.5e-6 absolute
    for norm in grouped_batch_norms(adapter):
        norm.move(*norm.flush())
    for name, published in stem.state_dict().items():
        own = adapter.state_dict()[name]
        torch.testing.assert_close(own, published, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_of_the_stem_are_those_of_the_whole_image_when_all_is_visible():
    encoder = _encoder(4)
    adapter, images = encoder.spectral_adapter.train(), _images(202)
    stem = WholeImageStem(adapter.state_dict()).train()
    mask = torch.randn(3, 16, 16, 128, generator=torch.Generator().manual_seed(4))
    (adapter(patchify(images, 4).flatten(1, 2)).unflatten(1, (16, 16)) * mask).sum().backward()
    (patchify(stem(images), 4) * mask).sum().backward()
    for (name, own), whole in zip(adapter.named_parameters(), stem.parameters(), strict=True):
        if name in ("0.bias", "3.bias", "6.bias"):  # zero but for rounding, and exactly zero here
            assert not own.grad.any()
        else:
            worst = 5e-5 * float(whole.grad.abs().max())  # measured: 5e-6 of the largest
            torch.testing.assert_close(own.grad, whole.grad, rtol=0, atol=worst)


def test_the_smallest_number_of_bands_is_75():
    encoder = build_encoder("spec_vit_tiny", image_size=8).eval()
    assert encoder(torch.zeros(1, 75, 8, 8)).shape == (1, 192)
    with pytest.raises(RuntimeError):
        encoder(torch.zeros(1, 74, 8, 8))
