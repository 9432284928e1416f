"""Outputs, losses and gradients of the published implementation, for weights made by a rule."""

import json
import re

import numpy as np
import pytest
import torch
from support.masks import masks_of
from support.reference_weights import fill_by_rule, rule_input

from pretrain.models.registry import ENCODERS, build_encoder
from pretrain.models.resnet import SpecResNet
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder

NAMES = ("spec_vit_tiny", "spec_vit_small")
CASES = range(3)


@pytest.mark.parametrize("name", [name for name in ENCODERS.names() if name != "spec_vit_gigantic"])
def test_keys_and_shapes_are_the_published_ones(reference, name):
    published = json.loads((reference / "state_dict_keys.json").read_text())[name]
    expected = {key: tuple(shape) for key, shape in published.items() if not re.search(r"(^|\.)(head|fc)\.", key)}
    with torch.device("meta"):  # the large ones do not fit every machine
        own = {key: tuple(tensor.shape) for key, tensor in build_encoder(name).state_dict().items()}
    assert own == expected
    assert list(own) == list(expected)  # in the same order, too


@pytest.fixture(scope="module", params=NAMES)
def tokens(request, reference):
    """Features of both samples, all tokens of the first sample, and the published values."""
    encoder = build_encoder(request.param).eval()
    fill_by_rule(encoder)
    images, _ = rule_input(reference, seed=7)
    tokens = []
    encoder.vit_core.register_forward_hook(lambda module, inputs, output: tokens.append(output[0]))
    with torch.no_grad():
        features = encoder(images)
    with np.load(reference / "features.npz") as published:
        wanted = {name.split("/")[1]: published[name] for name in published if name.startswith(request.param)}
    return features.numpy(), tokens[0][:1].numpy(), wanted


def _equal(values, published):
    # measured: worst 2.7e-6 absolute, of values up to 3.5; atol is for values that happen to be near 0
    np.testing.assert_allclose(values, published, rtol=1e-4, atol=1e-5)


def test_features_of_the_image(tokens):
    _equal(tokens[0], tokens[2]["features"])


def test_class_token(tokens):
    _equal(tokens[1][:, :1], tokens[2]["cls"])


def test_first_patch_tokens(tokens):
    _equal(tokens[1][:, 1:9], tokens[2]["tokens_first8"])


def test_mean_of_the_patch_tokens(tokens):
    _equal(tokens[1][:, 1:].mean(1), tokens[2]["tokens_mean"])


@pytest.fixture(scope="module", params=CASES)
def mae(request, reference):
    """What one published case gives here, and the case."""
    case = json.loads((reference / "mae.json").read_text())[request.param]
    encoder = build_encoder(case["model"])
    model = MaskedAutoencoder(encoder, 202, case["mask_ratio"], case["norm_pix"]).eval()
    fill_by_rule(encoder)
    fill_by_rule(model.decoder, "decoder.", keep=("decoder_pos_embed",))
    images, generator = rule_input(reference, case["seed"])
    noise = torch.rand(2, 1024, generator=generator)
    latent = []
    hook = encoder.vit_core.register_forward_hook(lambda module, inputs, output: latent.append(output[0]))
    losses, prediction, _, _ = model(images, masks_of(noise, case["mask_ratio"]))
    hook.remove()
    losses.mean().backward()
    norms = {}
    for name, parameter in model.named_parameters():
        norms[name.removeprefix("encoder.")] = float(parameter.grad.double().norm())
    sums = float(model.decoder.decoder_pos_embed.double().sum())
    return case, float(losses.detach().mean()), prediction.detach()[0, 0, :8], latent[0].detach()[0, 0, :8], norms, sums


def test_loss_of_the_masked_autoencoder(mae):
    assert mae[1] == pytest.approx(mae[0]["loss"], rel=1e-4)  # measured: worst 1.7e-8


def test_first_prediction(mae):
    np.testing.assert_allclose(mae[2], mae[0]["pred_first"], rtol=1e-4, atol=1e-5)  # measured: 1.4e-6 absolute


def test_class_token_of_the_visible_patches(mae):
    np.testing.assert_allclose(mae[3], mae[0]["enc_cls_first"], rtol=1e-4, atol=1e-5)  # measured: 9e-7 absolute


def test_norms_of_all_gradients(mae):
    published, own = mae[0]["grad_norms"], mae[4]
    assert len(published) == 179
    assert own.keys() - published.keys() == {"vit_core.cls_token", "vit_core.pos_embed"}
    assert {name: own[name] for name in published} == pytest.approx(published, rel=1e-3)  # measured: 6.4e-5


def test_fixed_positions_of_the_decoder(mae):
    assert mae[5] == pytest.approx(mae[0]["decoder_pos_embed_sum"], rel=1e-7)  # measured: 9e-9


# ---- Spec. ResNet-50 ----


def test_resnet_features_are_the_published_ones(reference):
    encoder = SpecResNet().eval()
    fill_by_rule(encoder)
    images, _ = rule_input(reference, seed=7)
    with torch.no_grad():
        features = encoder(images).numpy()
    with np.load(reference / "features.npz") as values:
        _equal(features, values["spec_resnet50/features"])
