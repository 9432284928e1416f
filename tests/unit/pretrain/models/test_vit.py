"""Vision transformers: sizes, tokens, crops of several sizes, intermediate layers."""

import re

import pytest
import torch
from support.small_networks import drawn

from pretrain.models.encoder import Encoder
from pretrain.models.initialize import initialize
from pretrain.models.patches import resize_positions, sincos_positions
from pretrain.models.registry import ENCODERS, build_encoder
from pretrain.models.vit import SpecViT
from shards.errors import ConfigError


def test_tokens_depend_on_where_a_patch_lies():
    encoder = SpecViT(8, 4, width=16, depth=1, heads=2, mlp_hidden=32)
    initialize(encoder, "here", 0)
    patches = torch.randn(1, 1, 16, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (encoder.eval().tokens(patches, torch.tensor([[place]])) for place in (0, 3))
    assert not torch.allclose(first, second)


def test_ids_in_order_are_the_whole_grid():
    encoder = SpecViT(8, 4, width=16, depth=1, heads=2, mlp_hidden=32)
    initialize(encoder, "whole", 0)
    patches = torch.randn(2, 4, 16, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder.eval().tokens(patches)
        assert torch.equal(encoder.tokens(patches, torch.arange(4).expand(2, -1)), expected)


@pytest.mark.parametrize(("image_size", "patch_size"), [(128, 3), (10, 4), (4, 8)])
def test_a_patch_size_that_does_not_divide_the_image_is_refused(image_size, patch_size):
    with pytest.raises(ValueError, match=f"patch size {patch_size} does not divide image size {image_size}"):
        build_encoder("spec_vit_tiny", image_size, patch_size)


def test_an_unknown_encoder_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match="unknown encoder 'vit': known are spec_vit_tiny, spec_vit_small"):
        build_encoder("vit")


@pytest.mark.parametrize(("name", "parameters"), [("spec_vit_tiny", 5_985_344), ("spec_vit_small", 22_531_328)])
def test_sizes_are_the_published_ones(name, parameters):
    assert sum(p.numel() for p in build_encoder(name).parameters()) == parameters
    assert name in ENCODERS


def test_fixed_positions_are_a_buffer_under_the_same_name():
    encoder = SpecViT(8, 4, width=16, depth=1, heads=2, mlp_hidden=32)
    before = set(encoder.state_dict())
    encoder.vit_core.fix_positions()
    assert set(encoder.state_dict()) == before
    assert "vit_core.pos_embed" not in dict(encoder.named_parameters())
    assert torch.equal(encoder.vit_core.pos_embed, sincos_positions(16, 2))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("spec_vit_tiny", 5_985_344),
        ("spec_vit_small", 22_531_328),
        ("spec_vit_base", 87_473_792),
        ("spec_vit_large", 305_516_416),
        ("spec_vit_huge", 633_672_832),
        ("spec_vit_giant", 1_138_043_264),
        ("spec_vit_gigantic", 1_845_000_000),
    ],
)
def test_encoders_have_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):
        encoder = build_encoder(name)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert count == parameters or (name == "spec_vit_gigantic" and abs(count / parameters - 1) < 0.005)


# ---- sizes, crops, layers ----


def _drawn(name: str = "spec_vit_tiny", size: int = 16, patch: int = 4, bands: int = 100) -> Encoder:
    encoder = build_encoder(name, size, patch, bands=bands)
    initialize(encoder, "test", 0)
    return encoder.eval()


@pytest.mark.parametrize("name", ["spec_vit_tiny", "vit_tiny"])
@torch.no_grad()
def test_packed_crops_are_the_crops_alone(name):
    encoder = _drawn(name)
    crops = [drawn(3, 100, 16, 16), drawn(4, 100, 8, 8), drawn(2, 100, 12, 12)]
    packed = encoder(crops)
    assert packed.shape == (9, 192)
    torch.testing.assert_close(packed, torch.cat([encoder(crop) for crop in crops]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_positions_are_interpolated_to_other_sizes():
    positions = sincos_positions(16, 8)
    assert resize_positions(positions, (8, 8)) is positions
    flat = torch.cat([positions[:, :1], torch.full((1, 64, 16), 3.0)], 1)
    resized = resize_positions(flat, (4, 6))
    assert torch.equal(resized[:, :1], positions[:, :1])
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 24, 16), 3.0))
    ramp = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 8, 16).reshape(1, 64, 16)  # rows count up
    finer = resize_positions(torch.cat([positions[:, :1], ramp], 1), (16, 16))[0, 1:].view(16, 16, 16)
    assert (finer[1:-1].diff(dim=0) > 0).all()
    torch.testing.assert_close(finer[:, 0], finer[:, 9])
    wide = resize_positions(torch.cat([positions[:, :1], ramp], 1), (4, 12))[0, 1:].view(4, 12, 16)
    assert (wide.diff(dim=0) > 1).all()
    assert wide.diff(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize(("patch", "bands"), [(4, 202), (8, 150), (16, 242)])
@pytest.mark.parametrize("name", ["spec_vit_tiny", "vit_tiny"])
@torch.no_grad()
def test_each_place_of_a_map_tells_of_its_own_patch(name, patch, bands):
    """Blocks that add nothing leave each patch to itself, in an image that isn't square."""
    encoder = _drawn(name, 4 * patch, patch, bands)
    assert encoder.stride == patch
    images = drawn(1, bands, 2 * patch, 3 * patch)
    changed = images.clone()
    changed[:, :, -1, -patch - 1] += 1.0  # the last pixel of row 1, column 1
    assert not torch.equal(encoder(changed), encoder(images))
    for block in encoder.core.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    moved = (encoder.dense_features(changed) != encoder.dense_features(images)).any(1)
    assert moved.tolist() == [[[False, False, False], [False, True, False]]]
    encoder.core.pos_embed[0, 1:] = drawn(4, 192).repeat_interleave(4, 0)  # each row its own
    even = encoder.dense_features(torch.zeros_like(images))
    assert torch.allclose(even, even[..., :1], atol=1e-5)
    assert not torch.allclose(even[:, :, 0], even[:, :, 1], atol=0.1)


@torch.no_grad()
def test_an_image_that_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="10 x 16 px can't be divided into patches of 4 px"):
        _drawn()(drawn(1, 100, 10, 16))


@pytest.mark.parametrize("name", ["spec_vit_tiny", "vit_tiny"])
@torch.no_grad()
def test_intermediate_layers(name):
    encoder, images = _drawn(name), drawn(2, 100, 16, 16)
    ((last, cls),) = encoder.get_intermediate_layers(images, return_prefix_tokens=True, norm=True)
    torch.testing.assert_close(cls[:, 0], encoder(images))
    (shaped,) = encoder.get_intermediate_layers(images, reshape=True, norm=True)
    torch.testing.assert_close(shaped, encoder.dense_features(images))
    torch.testing.assert_close(shaped.flatten(2).transpose(1, 2), last)
    outputs: list[torch.Tensor] = []
    for block in encoder.core.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for n, numbers in ((4, [8, 9, 10, 11]), ([3, 0, -1], [3, 0, 11]), ([-12, 5, 5], [0, 5, 5])):
        outputs.clear()
        layers = encoder.get_intermediate_layers(images, n=n, return_prefix_tokens=True)
        for (patches, cls), number in zip(layers, numbers, strict=True):
            assert torch.equal(torch.cat([cls, patches], 1), outputs[number])
    for wrong in (0, 13):
        with pytest.raises(ValueError, match=f"the last {wrong} layers were requested, but this encoder has 12"):
            encoder.get_intermediate_layers(images, n=wrong)
    for wrong in (12, -13):
        with pytest.raises(ValueError, match=f"layer {wrong} was requested, but this encoder has layers 0 to 11"):
            encoder.get_intermediate_layers(images, n=[0, wrong])


@pytest.mark.parametrize(("name", "stride"), [("vit_tiny", 4), ("resnet50", 32), ("spec_resnet50", 16)])
def test_every_encoder_gives_vectors_and_maps_and_trains(name, stride):
    encoder = _drawn(name, 32).train()
    with torch.no_grad():
        for parameter in encoder.parameters():  # fresh residual blocks of a ResNet add nothing: no gradient inside
            if parameter.dim() == 1:
                parameter.fill_(0.5)
    images = drawn(2, 100, 32, 32)
    maps = encoder.dense_features(images)
    assert encoder.stride == stride
    assert maps.shape == (2, encoder.feature_dim, 32 // stride, 32 // stride)
    assert maps.isfinite().all()
    assert encoder([images, images]).shape == (4, encoder.feature_dim)
    (encoder(images).square().mean() + maps.square().mean()).backward()
    still = {
        name for name, parameter in encoder.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert still == {key for key in encoder.state_dict() if re.search(r"spectral_adapter\.[036]\.bias", key)}
