"""Learning rates step by step, and which parameters decay."""

import itertools
import math

import pytest
import torch

from pretrain.config.optim import OptimConfig
from pretrain.engine.optimizers import build_adamw, build_optimizer, parameter_groups
from pretrain.engine.schedules import learning_rate, warmup_cosine
from pretrain.models.registry import build_encoder
from pretrain.models.vit import SpecViT
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder


def _rates(steps: int, warmup: int, min_lr: float = 0.0) -> list[float]:
    return [warmup_cosine(step, steps, warmup, 2.0, min_lr) for step in range(steps)]


def test_warm_up_climbs_in_equal_steps_to_the_rate():
    rates = _rates(100, 10)
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[9] == rates[10] == 2.0


@pytest.mark.parametrize("min_lr", [0.0, 0.5])
def test_the_last_step_has_the_smallest_rate(min_lr):
    rates = _rates(101, 10, min_lr)
    assert rates[-1] == pytest.approx(min_lr, abs=1e-12)
    assert rates[55] == pytest.approx((2.0 + min_lr) / 2)  # half-way
    assert all(before >= after for before, after in itertools.pairwise(rates[10:]))
    assert rates[30] == pytest.approx(min_lr + (2 - min_lr) * (1 + math.cos(math.pi * 20 / 90)) / 2)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert _rates(5, 0)[0] == 2.0


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 2), (3, 5), (11, 10)])
def test_short_runs_have_finite_rates_up_to_the_largest(steps, warmup):
    assert all(0 <= rate <= 2.0 for rate in _rates(steps, warmup))


def test_beyond_the_last_step_the_rate_stays():
    assert warmup_cosine(500, 100, 10, 2.0, 0.5) == pytest.approx(0.5)


# ---- groups ----


def _model() -> MaskedAutoencoder:
    encoder = SpecViT(8, 4, width=16, depth=2, heads=2, mlp_hidden=32)
    return MaskedAutoencoder(encoder, 80, 0.5, True, decoder_width=16, decoder_heads=2)


def _groups(model: torch.nn.Module) -> dict[str, float]:
    """Weight decay of each trained parameter by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_adamw(model, 1e-3, (0.9, 0.95), 0.05)
    pairs = [(names[id(p)], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(pairs) == len(dict(pairs))  # none twice
    return dict(pairs)


def test_every_parameter_is_trained_once():
    model = _model()
    assert _groups(model).keys() == dict(model.named_parameters()).keys()


def test_matrices_decay_and_biases_norms_and_tokens_do_not():
    decays = _groups(_model())
    plain = {name for name, decay in decays.items() if decay == 0.0}
    tokens = {"encoder.vit_core.cls_token", "encoder.vit_core.pos_embed", "decoder.mask_token"}
    norms = {name for name in decays if "norm" in name or name.rsplit(".", 2)[-2] in ("1", "4", "7")}
    biases = {name for name in decays if name.endswith("bias")}
    assert plain == tokens | norms | biases
    assert {decays[name] for name in decays.keys() - plain} == {0.05}
    for name in (
        "encoder.spectral_adapter.0.weight",
        "encoder.vit_core.patch_embed.proj.weight",
        "encoder.vit_core.blocks.1.attn.qkv.weight",
        "decoder.decoder_pred.weight",
    ):
        assert decays[name] == 0.05


def test_frozen_parameters_are_left_out():
    model = _model()
    model.encoder.requires_grad_(False)
    assert all(name.startswith("decoder.") for name in _groups(model))


def test_a_model_of_biases_alone_has_one_group():
    model = torch.nn.LayerNorm(4)
    assert len(build_adamw(model, 1e-3, (0.9, 0.95), 0.05).param_groups) == 1


def test_rates_and_betas_are_those_given():
    optimizer = build_adamw(_model(), 1e-3, (0.8, 0.99), 0.05)
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(1e-3, (0.8, 0.99))}


# ---- layers, other optimizers, milestones ----


@pytest.mark.parametrize(("name", "depth"), [("spec_vit_tiny", 12), ("spec_resnet50", 4), ("spec_vit_gigantic", 48)])
def test_lower_layers_have_lower_rates_in_few_groups(name, depth):
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"encoder": build_encoder(name, 16), "head": torch.nn.Linear(4, 4)})
    groups = parameter_groups(model, 0.05, layer_decay=0.5 ** (1 / depth))
    assert len(groups) <= 10
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(trained) == sorted(id(parameter) for parameter in model.parameters())
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    named = {key: scale[id(parameter)] for key, parameter in model.named_parameters()}
    assert named["head.weight"] == 1.0
    assert named["encoder.spectral_adapter.0.weight"] == min(scale.values()) < 0.65
    blocks = [named[key] for key in named if key.endswith(("mlp.fc1.weight", ".0.conv1.weight"))]
    assert len(blocks) == depth
    assert blocks == sorted(blocks)
    assert len(set(blocks)) == 4
    assert max(blocks) < 1.0
    levels = (depth + 1) / 4  # each rate is that of the middle of its level
    for layer, rate in enumerate(blocks, start=1):
        assert abs(math.log(rate, 0.5) * depth - (depth + 1 - layer)) <= levels / 2
    assert {value for key, value in named.items() if "norm." in key and "blocks" not in key} <= {1.0}


def test_without_layer_decay_all_rates_are_equal():
    assert {group["lr_scale"] for group in parameter_groups(_model(), 0.05)} == {1.0}


def test_optimizers_are_those_of_the_config():
    sgd = build_optimizer(_model(), OptimConfig(name="sgd", betas=(0.8, 0.9), weight_decay=0.1))
    assert isinstance(sgd, torch.optim.SGD)
    assert {(group["momentum"], group["weight_decay"]) for group in sgd.param_groups} == {(0.8, 0.1), (0.8, 0.0)}
    adamw = build_optimizer(_model(), OptimConfig(betas=(0.8, 0.9), lr=3e-4, weight_decay=0.2, layer_decay=0.5))
    assert {(group["lr"], group["weight_decay"]) for group in adamw.param_groups} == {(3e-4, 0.2), (3e-4, 0.0)}
    assert len({group["lr_scale"] for group in adamw.param_groups}) == 4  # three layers and the rest
    assert isinstance(adamw, torch.optim.AdamW)
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.9)}


def test_milestones_take_a_tenth_each():
    config = OptimConfig(schedule="milestones", milestones=(0.6, 0.8), warmup_steps=2)
    rates = [learning_rate(step, 10, 1.0, config) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_cosine_is_the_default():
    config = OptimConfig(min_lr=0.1)
    assert learning_rate(0, 11, 1.0, config) == 1.0
    assert learning_rate(10, 11, 1.0, config) == pytest.approx(0.1)
