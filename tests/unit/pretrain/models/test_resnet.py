"""Spec. ResNet-50: strides, dilation, any band count, gradients everywhere."""

import pytest
import torch

from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.models.resnet import FEATURES, SpecResNet


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    model = SpecResNet()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
        else:
            torch.nn.init.constant_(parameter, 0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("dilate", "side"),
    [((False,) * 4, 2), ((False, False, False, True), 4), ((False, False, True, True), 8), ((True,) * 4, 32)],
)
def test_dilation_takes_the_place_of_strides(dilate, side):
    model = SpecResNet(dilate).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert model.dense_features(torch.zeros(1, 100, 32, 32)).shape == (1, FEATURES, side, side)


@pytest.mark.parametrize("bands", [150, 198, 202, 224, 242])
def test_any_number_of_bands_goes_through_the_same_weights(encoder, bands):
    with torch.no_grad():
        features = encoder(torch.randn(2, bands, 16, 16))
    assert features.shape == (2, FEATURES)
    assert torch.isfinite(features).all()


def test_a_dilated_trunk_has_the_same_parameters():
    shapes = [{name: p.shape for name, p in SpecResNet(d).state_dict().items()} for d in ((False,) * 4, (True,) * 4)]
    assert shapes[0] == shapes[1]


def test_every_weight_is_trained(encoder):
    encoder.train()
    encoder(torch.randn(4, 100, 16, 16)).square().mean().backward()
    encoder.eval()
    without = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert without == []
    still = [name for name, p in encoder.named_parameters() if p.dim() > 1 and not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize(("name", "side"), [("spec_resnet50", 16), ("resnet50", 8)])
@torch.no_grad()
def test_intermediate_layers(name, side):
    encoder = build_encoder(name, 32, bands=100)
    initialize(encoder, "test", 0)
    images = torch.randn(2, 100, 32, 32, generator=torch.Generator().manual_seed(1))
    maps = encoder.eval().get_intermediate_layers(images, n=4, reshape=True)
    shapes = [(2, 256 << number, side >> number, side >> number) for number in range(4)]
    assert [tuple(one.shape) for one in maps] == shapes
    torch.testing.assert_close(maps[-1], encoder.dense_features(images))
    torch.testing.assert_close(maps[-1].mean((2, 3)), encoder(images))
    for n, numbers in ((2, [2, 3]), ([1, -4, 3], [1, 0, 3])):
        tokens = encoder.get_intermediate_layers(images, n=n)
        for one, number in zip(tokens, numbers, strict=True):
            assert torch.equal(one, maps[number].flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match="no class token"):
        encoder.get_intermediate_layers(images, return_prefix_tokens=True)
    with pytest.raises(ValueError, match="layer 4 was requested, but this encoder has layers 0 to 3"):
        encoder.get_intermediate_layers(images, n=[4])
