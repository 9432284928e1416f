"""Batch norm over fixed groups: torch's own for one group, and the same numbers however a batch is cut."""

import pytest
import torch
from torch import nn

from pretrain.models.adapter import SpectralAdapter
from pretrain.models.batchnorm import GroupedBatchNorm, by_groups, grouped_batch_norms
from pretrain.models.initialize import initialize

CHANNELS, LENGTH = 5, 7


def _values(samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3.0 + 2.0 * torch.randn(samples, CHANNELS, LENGTH, generator=generator)


def _pair() -> tuple[GroupedBatchNorm, nn.BatchNorm1d]:
    """Ours and torch's with the same, not neutral, weights and buffers."""
    own, torchs = GroupedBatchNorm(CHANNELS), nn.BatchNorm1d(CHANNELS)
    with torch.no_grad():
        for number, tensor in enumerate((torchs.weight, torchs.bias, torchs.running_mean, torchs.running_var)):
            tensor.copy_(torch.linspace(0.5, 1.5, CHANNELS) + number)
    own.load_state_dict(torchs.state_dict())
    return own, torchs


def _stats(norm: nn.Module) -> torch.Tensor:
    return torch.cat([norm.running_mean, norm.running_var, norm.num_batches_tracked.float()[None]])


def _adapter(bn_group: int | None) -> SpectralAdapter:
    adapter = SpectralAdapter(bn_group)
    initialize(adapter, "batch norm", 1)
    return adapter


def _pixels(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, 6, 80, generator=torch.Generator().manual_seed(seed))


def test_one_group_is_torchs_batch_norm_in_output_and_gradients():
    own, torchs = _pair()
    x, y = _values(4).requires_grad_(), _values(4).requires_grad_()
    weight = _values(4, seed=1)
    out, expected = own(x), torchs(y)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(own.weight.grad, torchs.weight.grad)
    torch.testing.assert_close(own.bias.grad, torchs.bias.grad)


def test_one_group_moves_the_running_statistics_as_torch_does():
    """With 4 x 7 values a channel, biased and unbiased variance differ by 4 %."""
    own, torchs = _pair()
    for step in range(3):
        own(_values(4, step))
        torchs(_values(4, step))
        own.move(*own.flush())
        torch.testing.assert_close(_stats(own), _stats(torchs), rtol=1e-5, atol=1e-6)


def test_evaluation_is_torchs():
    own, torchs = _pair()
    torch.testing.assert_close(own.eval()(_values(4)), torchs.eval()(_values(4)))


def test_two_groups_move_the_statistics_by_the_mean_of_both():
    own, _ = _pair()
    before = own.running_mean.clone(), own.running_var.clone()
    parts = _values(4, 1), 5 * _values(4, 2)
    for part in parts:
        own(part)
    own.move(*own.flush())
    mean = torch.stack([part.mean((0, 2)) for part in parts]).mean(0)
    variance = torch.stack([part.var((0, 2)) for part in parts]).mean(0)
    torch.testing.assert_close(own.running_mean, 0.9 * before[0] + 0.1 * mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.running_var, 0.9 * before[1] + 0.1 * variance, rtol=1e-5, atol=1e-6)
    assert own.num_batches_tracked == 1


def test_one_call_of_eight_is_two_calls_of_four():
    whole, cut = _adapter(4), _adapter(4)
    pixels, weight = _pixels(8), torch.randn(8, 6, 128, generator=torch.Generator().manual_seed(9))
    outputs = whole(pixels)
    (outputs * weight).sum().backward()
    parts = []
    for begin in (0, 4):
        parts.append(cut(pixels[begin : begin + 4]))
        (parts[-1] * weight[begin : begin + 4]).sum().backward()
    assert torch.equal(outputs, torch.cat(parts))
    for (name, one), other in zip(whole.named_parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)
    for one, other in zip(grouped_batch_norms(whole), grouped_batch_norms(cut), strict=True):
        one.move(*one.flush())
        other.move(*other.flush())
        assert torch.equal(_stats(one), _stats(other))


def test_groups_do_matter():
    """Eight samples as one group give something else than as two: the equality above isn't empty."""
    assert not torch.allclose(_adapter(4)(_pixels(8)), _adapter(8)(_pixels(8)), atol=1e-3)


def test_pending_of_all_ranks_added_up_moves_as_one_rank_with_everything():
    alone, _ = _pair()
    ranks = [_pair()[0] for _ in range(2)]
    for number in range(4):
        alone(_values(4, number))
        ranks[number // 2](_values(4, number))
    alone.move(*alone.flush())
    sums, groups = zip(*(rank.flush() for rank in ranks), strict=True)
    for rank in ranks:
        rank.move(sum(sums), sum(groups))
        torch.testing.assert_close(_stats(rank), _stats(alone), rtol=1e-6, atol=0)


def test_a_layer_without_a_group_adds_nothing():
    sums, groups = _pair()[0].flush()
    assert groups == 0
    assert torch.equal(sums, torch.zeros(2, CHANNELS))


def test_no_group_at_all_leaves_the_statistics():
    own, _ = _pair()
    before = own.running_mean.clone(), own.running_var.clone()
    own.move(*own.flush())
    assert torch.equal(own.running_mean, before[0])
    assert torch.equal(own.running_var, before[1])


def test_pending_is_taken_once():
    own, _ = _pair()
    own(_values(4))
    assert own.flush()[-1] == 1
    assert own.flush()[-1] == 0


@pytest.mark.parametrize("when", ["eval", "no_grad"])
def test_only_training_forwards_count(when):
    own, _ = _pair()
    if when == "eval":
        own.eval()(_values(4))
    else:
        with torch.no_grad():
            own(_values(4))
    assert own.flush()[-1] == 0


def test_evaluation_stays_as_it_was_until_the_statistics_move():
    own, _ = _pair()
    before = own.eval()(_values(4))
    own.train()(_values(4, 1))
    assert torch.equal(own.eval()(_values(4)), before)
    own.move(*own.flush())
    assert not torch.equal(own(_values(4)), before)


def test_reset_makes_an_untrained_layer():
    own, _ = _pair()
    own.reset()
    assert torch.equal(_stats(own), _stats(GroupedBatchNorm(CHANNELS)))


@pytest.mark.parametrize("samples", [1, 3, 6, 9])
def test_samples_that_are_not_a_multiple_of_the_group_are_refused(samples):
    with pytest.raises(ValueError, match=f"{samples} samples are not a multiple of bn_group 4"):
        _adapter(4)(_pixels(samples))


def test_evaluation_takes_any_number_of_samples():
    adapter = _adapter(4).eval()
    together = adapter(_pixels(7))
    torch.testing.assert_close(together, torch.cat([adapter(one[None]) for one in _pixels(7)]))


def test_by_groups_calls_once_per_group_in_order():
    calls = []

    def layers(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.flatten().tolist())
        return x + 1

    x = torch.arange(6)[:, None]
    assert torch.equal(by_groups(layers, x, 2), x + 1)
    assert torch.equal(by_groups(layers, x, None), x + 1)
    assert calls == [[0, 1], [2, 3], [4, 5], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("autocast", [False, True])
def test_statistics_of_half_precision_input_are_taken_in_fp32(autocast):
    """Mean 300, spread 1: bf16 arithmetic has steps of 2 there."""
    generator = torch.Generator().manual_seed(0)
    x = (300 + torch.randn(64, CHANNELS, LENGTH, generator=generator)).bfloat16()
    own, torchs = GroupedBatchNorm(CHANNELS), nn.BatchNorm1d(CHANNELS)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = own(x)
    own.move(*own.flush())
    torchs(x.float())
    assert out.dtype == torch.bfloat16
    assert {buffer.dtype for buffer in (own.running_mean, own.running_var)} == {torch.float32}
    torch.testing.assert_close(_stats(own), _stats(torchs), rtol=1e-5, atol=1e-5)


def test_the_stem_runs_under_autocast_with_fp32_buffers():
    adapter = _adapter(2)
    with torch.autocast("cpu", torch.bfloat16):
        out = adapter(_pixels(4))
    torch.testing.assert_close(out.float(), _adapter(2)(_pixels(4)), rtol=0.05, atol=0.05)
    for norm in grouped_batch_norms(adapter):
        norm.move(*norm.flush())
        assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
        assert norm.num_batches_tracked.dtype == torch.long


def test_the_convolutions_bias_has_no_gradient_in_training_and_one_in_evaluation():
    adapter = _adapter(2)
    biases = [adapter.get_submodule(name).bias for name in ("0", "3", "6")]
    adapter(_pixels(2)).square().sum().backward()
    assert all(bias.grad is not None and not bias.grad.any() for bias in biases)
    adapter.eval()(_pixels(2)).square().sum().backward()
    assert all(bias.grad.any() for bias in biases)


def test_the_convolutions_bias_moves_the_running_mean_and_the_evaluation():
    means, outputs = [], []
    for bias in (0.0, 1.0):
        adapter = _adapter(2)
        with torch.no_grad():
            adapter.get_submodule("0").bias.add_(bias)
        outputs.append([adapter(_pixels(2)), adapter.eval()(_pixels(2))])
        norm = grouped_batch_norms(adapter)[0]
        norm.move(*norm.flush())
        means.append(norm.running_mean.clone())
    (trained, evaluated), (trained_more, evaluated_more) = outputs
    torch.testing.assert_close(means[1], means[0] + 0.1)  # the momentum
    torch.testing.assert_close(trained_more, trained)
    assert not torch.allclose(evaluated_more, evaluated)
