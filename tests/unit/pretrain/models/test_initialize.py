"""First weights, drawn from the seed and the names of parameters."""

import math

import pytest
import torch
from support.small_networks import small_autoencoder

from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder


def test_initialize_fills_every_parameter():
    model = small_autoencoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialize(model, "run", 1)
    unfilled = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    assert unfilled == []


def test_initial_weights_depend_on_the_seed_and_the_name_alone():
    one, other = small_autoencoder(), small_autoencoder(decoder_width=32)
    torch.manual_seed(123)
    initialize(one, "run", 1)
    torch.manual_seed(456)
    initialize(other.decoder, "run.decoder", 1)  # another order, and modules of other sizes in between
    initialize(other.encoder, "run.encoder", 1)
    for (name, first), second in zip(one.encoder.named_parameters(), other.encoder.parameters(), strict=True):
        assert torch.equal(first, second), name


def test_initialize_leaves_torchs_own_generator():
    model = small_autoencoder()
    before = torch.get_rng_state()
    initialize(model, "run", 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "seed"), [("run", 2), ("other", 1)])
def test_another_seed_or_name_gives_other_weights(name, seed):
    one, other = small_autoencoder(), small_autoencoder()
    initialize(one, "run", 1)
    initialize(other, name, seed)
    for (label, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        constant = first.dim() == 1
        assert torch.equal(first, second) == constant, label


def test_layers_of_one_shape_get_different_weights():
    model = small_autoencoder()
    initialize(model, "run", 1)
    first, second = (model.encoder.vit_core.blocks[block].mlp.fc1.weight for block in (0, 1))
    assert not torch.equal(first, second)


def test_norms_begin_at_one_and_biases_at_zero():
    model = small_autoencoder()
    initialize(model, "run", 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name


def test_spreads_are_those_of_the_published_rules():
    encoder = build_encoder("spec_vit_tiny", image_size=32)
    initialize(encoder, "run", 1)
    core = encoder.vit_core
    assert float(core.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.05)
    bound = math.sqrt(6 / (192 + 768))  # Xavier
    assert float(core.blocks[0].mlp.fc1.weight.detach().abs().max()) == pytest.approx(bound, rel=1e-3)
    assert float(core.patch_embed.proj.weight.detach().abs().max()) == pytest.approx(
        math.sqrt(6 / (192 + 128 * 16)), rel=1e-3
    )
    convolution = encoder.spectral_adapter.get_submodule("3").weight
    assert float(convolution.detach().abs().max()) == pytest.approx(1 / math.sqrt(32 * 7), rel=1e-2)  # torch's default


def test_a_module_can_initialize_its_own_parameters():
    class Scaled(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.temperature = torch.nn.Parameter(torch.tensor(0.0))

        def initialize_parameter(self, name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
            parameter.fill_(0.07 if name == "temperature" else 0.5)

    model = torch.nn.Sequential(Scaled(), torch.nn.Linear(2, 2))
    initialize(model, "run", 1)
    assert float(model[0].temperature) == pytest.approx(0.07)
    assert (model[0].weight == 0.5).all()
    assert not model[1].bias.any() and model[1].weight.any()
