"""Kernels of the spectral adapter, run by Triton's interpreter, against torch's autograd in float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.adapter import LAYERS, SpectralAdapter
from pretrain.models.initialize import initialize
from pretrain.models.spectral_features import plain_features, spectral_features
from pretrain.models.spectral_layers import Layer
from pretrain.models.spectral_moments import im2col_moments

GROUPS = 2


def _layers(weights: Sequence[Tensor], fixed: Sequence[int]) -> list[Layer]:
    layers = []
    for number, (_, outputs, kernel, stride) in enumerate(LAYERS):
        place = torch.linspace(0.5, 1.5, outputs, dtype=torch.float64)
        moments = torch.stack([place - 1, place]) if fixed[number] else None
        layers.append(Layer(kernel, stride, *weights[4 * number : 4 * number + 4], moments, 1e-5))
    return layers


def _weights() -> list[Tensor]:
    generator, tensors = torch.Generator().manual_seed(0), []
    for inputs, outputs, kernel, _ in LAYERS:
        size = inputs * kernel
        tensors.append(torch.randn(size, outputs, generator=generator, dtype=torch.float64) / size**0.5)
        tensors += [0.5 + torch.rand(outputs, generator=generator, dtype=torch.float64) for _ in range(3)]
    return tensors


def _run(pixels: Tensor, weights: list[Tensor], fixed: Sequence[int], fused: bool) -> tuple[Tensor, ...]:
    """Return features, moments and gradients, in the dtype of pixels, or layer by layer in float64."""
    weights = [weight.detach().requires_grad_() for weight in weights]
    if pixels.dtype == torch.float64:
        features, moments = plain_features(pixels, _layers(weights, fixed), pixels.dtype)
    else:
        features, moments = spectral_features(pixels, _layers(weights, fixed), pixels.dtype, fused)
    slope = torch.randn(features.shape, generator=torch.Generator().manual_seed(9)).half().to(features.dtype)
    (features * slope).sum().backward()
    return features.detach(), *moments, *(weight.grad for weight in weights)


def _errors(dtype: torch.dtype, bands: int, count: int, fixed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return errors of each result relative to its norm, of kernels and of eager torch."""
    pixels = torch.randn(GROUPS, count, bands, generator=torch.Generator().manual_seed(bands)).to(dtype)
    exact = [weight.to(dtype).double() for weight in _weights()]
    expected = _run(pixels.double(), exact, fixed, fused=False)
    weights = [weight.float() for weight in exact]
    results = [_run(pixels, weights, fixed, fused) for fused in (True, False)]
    scales = torch.stack([value.double().norm().clamp(min=1.0) for value in expected])
    fused, eager = (
        torch.stack([(a.double() - b).norm() for a, b in zip(result, expected, strict=True)]) for result in results
    )
    return fused / scales, eager / scales


@pytest.fixture(autouse=True)
def small_shares(interpreter, monkeypatch):
    """Sum pixels in two shares."""
    monkeypatch.setattr("pretrain.kernels.stem_weights.SHARE", 64)


@pytest.mark.parametrize(
    ("bands", "count", "fixed"),
    [
        (75, 70, (0, 0, 0)),
        (100, 3, (1, 1, 1)),
        (202, 32, (0, 1, 0)),
        pytest.param(242, 65, (0, 0, 0), marks=pytest.mark.nightly),
    ],
)
def test_features_moments_and_gradients(bands, count, fixed):
    errors, _ = _errors(torch.float32, bands, count, fixed)
    assert errors.max() < 1e-5


def test_half_precision_rounds_as_eager_torch_does():
    fused, eager = _errors(torch.float16, 202, 40, (0, 0, 0))
    assert eager.max() < 0.1
    assert (fused < 1.2 * eager + 1e-4).all()


def test_an_adapter_takes_kernels_in_half_precision_alone():
    adapter = SpectralAdapter(1)
    initialize(adapter, "stem", 0)
    pixels = torch.randn(2, 8, 75, generator=torch.Generator().manual_seed(1))
    results = {}
    for kernel in ("auto", "eager"):
        adapter.kernel = kernel
        with torch.autocast("cpu", torch.float16), FlopCounterMode(display=False) as counter:
            results[kernel] = adapter(pixels)
        operators = {str(operator) for operator in counter.get_flop_counts()["Global"]}
        assert ("spectralforge.stem_second_layer" in operators) == (kernel == "auto")
    torch.testing.assert_close(results["auto"], results["eager"], rtol=5e-3, atol=5e-3)
    with FlopCounterMode(display=False) as counter:
        adapter(pixels)
    assert "spectralforge" not in str(counter.get_flop_counts())


@pytest.mark.parametrize("bands", [75, 202])
def test_moments_of_bands_that_are_nearly_alike(bands):
    """A filter that takes the difference of neighbors leaves little of a large signal."""
    from pretrain.models import spectral_fused

    generator = torch.Generator().manual_seed(bands)
    level, noise = (torch.randn(GROUPS, 70, size, generator=generator) for size in (1, bands))
    pixels, length = 50 * level + 0.01 * noise, (bands + 2 - 7) // 5 + 1
    weight = torch.tensor([0, 0, -1, 1, 0, 0, 0], dtype=torch.float64)
    fused = spectral_fused._im2col_moments(pixels, 7, 5, length)
    exact = im2col_moments(pixels.double(), 7, 5, length)
    torch.testing.assert_close(fused[0] @ weight, exact[0] @ weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused[1] @ weight @ weight, exact[1] @ weight @ weight, rtol=1e-5, atol=0)


def test_the_numbers_of_a_group_do_not_depend_on_how_many_groups_a_call_has():
    pixels = torch.randn(GROUPS, 33, 75, generator=torch.Generator().manual_seed(0)).half()
    layers = _layers([weight.float() for weight in _weights()], (0, 0, 0))
    together, _ = spectral_features(pixels, layers, pixels.dtype, fused=True)
    for group, features in zip(pixels, together, strict=True):
        assert torch.equal(spectral_features(group[None], layers, pixels.dtype, fused=True)[0][0], features)
