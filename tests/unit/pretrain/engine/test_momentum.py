"""A momentum network is the average of its network over updates, and holds no weights between forwards."""

import pytest
import torch
from support.plain_engine import PlainEngine
from torch import nn

from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.zero import move_batch_norms
from pretrain.models.adapter import CHANNELS, SpectralAdapter
from pretrain.models.batchnorm import by_groups, grouped_batch_norms
from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.models.resnet import Bottleneck
from pretrain.objectives.moco import ProjectedEncoder, ProjectionHead


class SmallResNet(nn.Module):
    """Adapter and one bottleneck of a Spec. ResNet, for its 25 million parameters take seconds."""

    feature_dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.spectral_adapter, self.block = SpectralAdapter(2), Bottleneck(CHANNELS, 8, self.feature_dim, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.spectral_adapter(images.flatten(2).transpose(1, 2)).transpose(1, 2)
        maps = by_groups(self.block, features.unflatten(2, images.shape[2:]), 2 if self.training else None)
        return maps.mean((2, 3))


@pytest.fixture(params=["spec_vit_tiny", "vit_tiny", "small resnet"])
def network(request) -> ProjectedEncoder:
    named = request.param != "small resnet"
    encoder = build_encoder(request.param, 8, 4, bn_group=2, bands=100) if named else SmallResNet()
    network = ProjectedEncoder(encoder, ProjectionHead(encoder.feature_dim, 16, 8, True, 2))
    initialize(network, "test", 0)
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
    averaged = average.pieces()
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name].values.double().view_as(value), value, rtol=1e-5, atol=1e-6)


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
    assert all(torch.equal(buffer, own[name]) for name, buffer in network.named_buffers())
    for name, value in moved.items():
        if name.endswith("num_batches_tracked"):
            assert int(value) == int(own[name]) + 1
        else:
            assert not torch.equal(value, own[name]), name
    with average.evaluating():
        average(engine, _images(1))
    assert not any(norm.flush()[-1] for norm in grouped_batch_norms(average.module))


def test_its_batch_norms_move_by_the_groups_of_all_forwards(network):
    """As the network's own would by the same images: two forwards of two groups each, then one move."""
    average, engine = MomentumNetwork(network), PlainEngine(network)
    for seed in (1, 2):
        average(engine, _images(seed))
        network(_images(seed))
    average.update(engine, 0.9)
    move_batch_norms(network)
    moved = dict(average.module.named_buffers())
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(moved[name], buffer)


def test_nothing_is_averaged_by_a_forward(network):
    average, engine = MomentumNetwork(network), PlainEngine(network)
    before = {name: shard.clone() for name, shard in average.shards.items()}
    average(engine, _images())
    assert all(torch.equal(average.shards[name], shard) for name, shard in before.items())


def test_what_it_gives_to_a_checkpoint_makes_it_again(network):
    first, engine = MomentumNetwork(network), PlainEngine(network)
    _shake(network, 7)
    first(engine, _images())
    first.update(engine, 0.5)
    second = MomentumNetwork(network)
    saved = first.pieces()
    assert saved.keys() == set(second.tensor_names())
    second.load(lambda name, start, count: saved[name].values[start : start + count])
    with first.evaluating(), second.evaluating():
        assert torch.equal(first(engine, _images(3)), second(engine, _images(3)))
