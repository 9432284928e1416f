"""A momentum network is the average of its network over updates, and holds no weights between forwards."""

import pytest
import torch
from support.plain_engine import PlainEngine
from torch import nn

from pretrain.models import build_encoder
from pretrain.models.initialise import initialise
from pretrain.momentum import MomentumNetwork
from pretrain.objectives.moco import ProjectedEncoder, ProjectionHead


@pytest.fixture(scope="module", params=["spec_vit_tiny", "spec_resnet50"])
def network(request) -> ProjectedEncoder:
    encoder = build_encoder(request.param, 8, 4, bn_group=2)
    network = ProjectedEncoder(encoder, ProjectionHead(encoder.feature_dim, 16, 8, True, 2))
    initialise(network, "test", 0)
    return network


def _images(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 100, 8, 8, generator=torch.Generator().manual_seed(seed))


def _shake(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_it_begins_as_a_copy_and_then_is_the_average(network):
    average, engine = MomentumNetwork(network), PlainEngine(network)
    expected = {name: parameter.detach().double().clone() for name, parameter in network.named_parameters()}
    assert torch.equal(average(engine, _images()), network(_images()).detach())
    for update, momentum in enumerate((0.9, 0.5, 0.996)):
        _shake(network, update)
        average.update(engine, momentum)
        for name, parameter in network.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * parameter.detach().double()
    for name, value in average.owned_tensors().items():
        if name in expected:
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_its_weights_exist_in_a_forward_alone(network):
    average, engine = MomentumNetwork(network), PlainEngine(network)
    output = average(engine, _images())
    assert not output.requires_grad
    assert all(parameter.numel() == 0 and parameter.grad is None for parameter in average.module.parameters())
    assert all(parameter.numel() for parameter in network.parameters())


def test_its_batch_norms_count_for_themselves(network):
    average, engine = MomentumNetwork(network), PlainEngine(network)
    own = {name: buffer.clone() for name, buffer in network.named_buffers()}
    average(engine, _images())
    average.update(engine, 0.9)
    moved = dict(average.module.named_buffers())
    name = "encoder.spectral_adapter.1.running_mean"
    assert not torch.equal(moved[name], own[name])
    assert all(torch.equal(buffer, own[name]) for name, buffer in network.named_buffers())
    counts = {int(value) - int(own[name]) for name, value in moved.items() if name.endswith("num_batches_tracked")}
    assert counts == {1}
    with average.evaluating():
        average(engine, _images(1))
    average.update(engine, 0.9)
    assert not any(len(norm._pending) for norm in average.module.modules() if hasattr(norm, "_pending"))


def test_what_it_gives_to_a_checkpoint_makes_it_again(network):
    first, engine = MomentumNetwork(network), PlainEngine(network)
    _shake(network, 7)
    first(engine, _images())
    first.update(engine, 0.5)
    second = MomentumNetwork(network)
    saved = first.owned_tensors()
    assert saved.keys() == set(second.tensor_names())
    for name, value in saved.items():
        assert tuple(value.shape) == second.shape(name)
        second.set_tensor(name, value)
    with first.evaluating(), second.evaluating():
        assert torch.equal(first(engine, _images(3)), second(engine, _images(3)))
