"""LoRA: training begins with what the encoder computes, changes the updates alone, and ends in merged weights."""

from dataclasses import replace

import pytest
import torch
from support.small_encoder import small_encoder
from torch import Tensor, nn

from pretrain.models.initialize import initialize
from pretrain.models.lora import add_updates, has_attention, merge_updates
from pretrain.models.published import SPEC_VITS
from pretrain.models.registry import build_encoder
from pretrain.models.unit import set_activation_checkpointing
from pretrain.models.wave import set_default_spectrum


@pytest.fixture(autouse=True)
def _two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPEC_VITS, "spec_vit_tiny", replace(SPEC_VITS["spec_vit_tiny"], depth=2))


TARGETS = ("qkv", "proj")
RANK, ALPHA = 3, 6.0


def _images(bands: int) -> Tensor:
    return torch.randn(2, bands, 16, 16, generator=torch.Generator().manual_seed(0))


def _with_updates(encoder: nn.Module, seed: int = 0) -> nn.Module:
    add_updates(encoder, TARGETS, RANK, ALPHA, seed)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(".lora." in name)
    return encoder


def _moved(encoder: nn.Module) -> nn.Module:
    """Let updates be what they could be after training."""
    for name, parameter in encoder.named_parameters():
        if name.endswith(".lora.b"):
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.data.copy_(0.02 * draw)
    return encoder


@pytest.mark.parametrize("stem", ["spectral_adapter", "wave"])
def test_merged_weights_compute_what_the_updates_do(stem):
    def encoder() -> nn.Module:
        built = build_encoder("spec_vit_tiny", 16, 4, stem={"name": stem})
        initialize(built, "test", 0)
        if stem == "wave":
            set_default_spectrum(built, [450.0 + 10 * band for band in range(202)], [10.0] * 202)
        return built.eval()

    images = _images(202)
    with torch.no_grad():
        tuned, plain = _with_updates(encoder()), encoder()
        begins = tuned(images)
        assert torch.equal(begins, plain(images))
        moved = _moved(tuned)(images)
        merged = merge_updates(tuned.state_dict(), ALPHA / RANK)
        assert merged.keys() == plain.state_dict().keys()
        plain.load_state_dict(merged)
        assert (plain(images) - moved).norm() / moved.norm() < 1e-6
        assert (moved - begins).norm() / begins.norm() > 1e-2


@pytest.mark.parametrize("policy", ["none", "selective", "blocks"])
def test_gradients_reach_all_updates_and_nothing_else(policy):
    encoder = _moved(_with_updates(small_encoder())).train()
    set_activation_checkpointing(encoder, policy)
    encoder(_images(202)).square().sum().backward()
    learning = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in encoder.named_parameters() if ".lora." in name}
    assert all(parameter.grad.any() for parameter in encoder.parameters() if parameter.grad is not None)


def test_the_seed_and_the_name_of_a_layer_draw_its_update():
    one, same, other = (_with_updates(small_encoder(), seed).state_dict() for seed in (0, 0, 1))
    drawn = [name for name in one if name.endswith(".lora.a")]
    assert all(torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name]) for name in drawn)
    assert len({float(one[name].flatten()[0]) for name in drawn}) == len(drawn)


def test_a_convolutional_encoder_has_no_attention():
    with torch.device("meta"):
        assert not has_attention(build_encoder("spec_resnet50", 16, 4))
        assert has_attention(build_encoder("spec_vit_tiny", 16, 4))
