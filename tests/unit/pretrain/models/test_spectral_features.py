"""The stem's own forward and backward pass against torch's autograd, layer by layer, in float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.models import spectral_parts
from pretrain.models.adapter import SpectralAdapter
from pretrain.models.initialize import initialize
from pretrain.models.spectral_features import plain_features, spectral_features
from pretrain.models.spectral_layers import Layer, col2im, im2col

SHAPES = ((1, 3, 7, 5), (3, 4, 7, 5), (4, 5, 5, 3))  # in, out, kernel, stride


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setitem(spectral_parts.PIXELS, "cpu", 5)


def _weights(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for inputs, outputs, kernel, _ in SHAPES:
        sizes = [(inputs * kernel, outputs), (outputs,), (outputs,), (outputs,)]
        tensors += [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def _layers(weights: Sequence[Tensor], fixed: Sequence[bool]) -> list[Layer]:
    layers = []
    for number, (_, outputs, kernel, stride) in enumerate(SHAPES):
        place = torch.linspace(0.5, 1.5, outputs, dtype=torch.float64)
        moments = torch.stack([place - 1, place]) if fixed[number] else None
        layers.append(Layer(kernel, stride, *weights[4 * number : 4 * number + 4], moments, 1e-5))
    return layers


def _spectra(dtype: torch.dtype = torch.float64, pixels: int = 12, bands: int = 142, groups: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(groups, pixels, bands, generator=generator, dtype=torch.float64).to(dtype)


def _run(function, pixels: Tensor, fixed: Sequence[bool]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    weights = _weights(pixels.dtype)
    features, moments = function(pixels, _layers(weights, fixed), pixels.dtype)
    slope = torch.linspace(-1, 2, features.numel(), dtype=pixels.dtype).view_as(features)
    (features * slope).sum().backward()
    return features.detach(), moments, [weight.grad for weight in weights]


@pytest.mark.parametrize("fixed", [(0, 0, 0), (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize(("bands", "groups"), [(75, 1), (142, 3), (202, 2)])
def test_features_moments_and_gradients_are_autograds(fixed, bands, groups):
    spectra = _spectra(bands=bands, groups=groups)
    own, plain = (_run(function, spectra, fixed) for function in (spectral_features, plain_features))
    torch.testing.assert_close(own[0], plain[0], rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(own[1], plain[1], strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-6, atol=1e-7)  # told in fp32
    for mine, theirs in zip(own[2], plain[2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


def test_the_size_of_parts_changes_nothing_but_rounding(monkeypatch):
    results = []
    for size in (1, 5, 12, 30, 1000):  # some pixels of a group, one group, two, all four
        monkeypatch.setitem(spectral_parts.PIXELS, "cpu", size)
        results.append(_run(spectral_features, _spectra(torch.float32, groups=4), (0, 0, 0)))
    for other in results[1:]:
        torch.testing.assert_close(other[0], results[0][0], rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(other[2], results[0][2], strict=True):
            worst = 1e-5 * max(1.0, float(theirs.abs().max()))
            torch.testing.assert_close(mine, theirs, rtol=0, atol=worst)


def test_the_numbers_of_a_group_do_not_depend_on_how_many_groups_a_call_has():
    spectra = _spectra(torch.float32, groups=3)
    features, moments, gradients = _run_squares(spectra)
    alone = [_run_squares(group[None]) for group in spectra]
    assert torch.equal(features, torch.cat([group[0] for group in alone]))
    for number, mine in enumerate(moments):
        assert torch.equal(mine, torch.cat([group[1][number] for group in alone], 1))
    for number, mine in enumerate(gradients):
        theirs = torch.stack([group[2][number] for group in alone]).double()
        torch.testing.assert_close(mine.double(), theirs.sum(0), rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def _run_squares(pixels: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    weights = _weights(pixels.dtype)
    features, moments = spectral_features(pixels, _layers(weights, (0, 0, 0)), pixels.dtype)
    features.square().sum().backward()
    return features.detach(), moments, [weight.grad for weight in weights]


def test_statistics_survive_bands_that_are_nearly_alike():
    """A filter that takes the difference of neighbours leaves little of a large signal."""
    level = 50 * torch.randn(1, 64, 1, generator=torch.Generator().manual_seed(2))
    pixels = level + 0.01 * _spectra(torch.float32, 64)
    weights = _weights(torch.float32)
    with torch.no_grad():
        weights[0].zero_()[2], weights[0][3] = -1.0, 1.0
    own, plain = (
        function(pixels.to(dtype), _layers([w.to(dtype) for w in weights], (0, 0, 0)), dtype)[1][0]
        for function, dtype in ((spectral_features, torch.float32), (plain_features, torch.float64))
    )
    torch.testing.assert_close(own[1].double(), plain[1].double(), rtol=1e-5, atol=0)


def test_pixels_get_a_gradient_where_they_ask_for_one():
    pixels = _spectra().requires_grad_()
    features, _ = spectral_features(pixels, _layers(_weights(), (0, 0, 0)), torch.float64)
    features.square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0


def test_a_second_backward_pass_gives_the_same():
    weights = _weights()
    features, _ = spectral_features(_spectra(), _layers(weights, (0, 0, 0)), torch.float64)
    loss = features.square().sum()
    once = torch.autograd.grad(loss, weights, retain_graph=True)
    for mine, theirs in zip(torch.autograd.grad(loss, weights), once, strict=True):
        assert torch.equal(mine, theirs)


def test_im2col_is_that_of_a_convolution_and_col2im_its_adjoint():
    layer = _layers(_weights(), (0, 0, 0))[1]
    x, weight = torch.randn(4, 23, 3, dtype=torch.float64), layer.weight
    out = im2col(x, layer) @ weight
    kernel = weight.view(7, 3, 4).permute(2, 1, 0)
    torch.testing.assert_close(out.transpose(1, 2), F.conv1d(x.transpose(1, 2), kernel, stride=5, padding=1))
    columns = im2col(x, layer)
    other = torch.randn_like(columns)
    assert float((columns * other).sum()) == pytest.approx(float((x * col2im(other, layer, 23)).sum()))


def test_activation_checkpointing_saves_the_pixels_alone():
    """The saved tensors of a recomputed adapter are freed, and its gradients are the same."""
    gradients, kept = [], []
    for policy in ("none", "blocks"):
        adapter = SpectralAdapter()
        initialize(adapter, "stem", 0)
        adapter.activation_checkpointing = policy
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = adapter(_spectra(torch.float32, 32, 202))
        features.square().sum().backward()
        gradients.append([p.grad for p in adapter.parameters()])
        kept.append(sum(sizes))
    assert kept[0] >= 32 * (202 + 512 + 256)
    assert kept[1] < 32 * 300
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.equal(mine, theirs)
