"""Kernels of the wave stem, run by Triton's interpreter, against torch's autograd in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.fused_wave import wave_features
from pretrain.models.initialize import initialize
from pretrain.models.spectrum import spectrum_of
from pretrain.models.wave import WaveStem

GROUPS, EPS = 2, 1e-6


@pytest.fixture(autouse=True)
def small_shares(interpreter, monkeypatch):
    """Sum pixels in several shares."""
    monkeypatch.setattr("pretrain.kernels.wave.SHARE", 64)


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _plain_features(
    pixels: Tensor, matrix: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    dtype = matrix.dtype
    scale, shift, weight, bias = (tensor.to(dtype) for tensor in (scale, shift, weight, bias))
    products = pixels.to(dtype) @ matrix
    return F.linear(F.gelu(F.layer_norm(products, (128,), scale, shift, eps)), weight, bias)


def _results(function, dtype: torch.dtype, count: int, bands: int, weights_dtype: torch.dtype) -> list[Tensor]:
    """Return features and the gradients of matrix and weights; values are those of half precision in any dtype."""
    pixels = _drawn(GROUPS, count, bands).half()
    matrix = (3 * _drawn(GROUPS, bands, 128, seed=1) / bands**0.5).half()
    weights = [1 + _drawn(128, seed=2) / 4, _drawn(128, seed=3), _drawn(128, 128, seed=4) / 11, _drawn(128, seed=5)]
    leaves = [matrix.to(dtype), *(weight.half().to(weights_dtype) for weight in weights)]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    features = function(pixels, *leaves, EPS)
    (features * _drawn(*features.shape, seed=9).half().to(features.dtype)).sum().backward()
    return [features.detach(), *(leaf.grad for leaf in leaves)]


def _errors(results: list[Tensor], expected: list[Tensor]) -> Tensor:
    return torch.stack([(a.double() - b).norm() / b.norm() for a, b in zip(results, expected, strict=True)])


@pytest.mark.parametrize(("count", "bands"), [(130, 75), (3, 1)])
def test_features_and_gradients_are_those_of_torch(count, bands):
    exact = _results(_plain_features, torch.float64, count, bands, torch.float64)
    assert _errors(_results(wave_features, torch.float32, count, bands, torch.float32), exact).max() < 1e-5


def test_half_precision_rounds_as_eager_torch_does():
    exact = _results(_plain_features, torch.float64, 70, 202, torch.float64)
    eager, fused = (
        _errors(_results(function, torch.float16, 70, 202, torch.float32), exact)
        for function in (_plain_features, wave_features)
    )
    assert eager.max() < 0.1
    assert (fused <= 1.2 * eager + 1e-4).all(), (fused, eager)


def _stem() -> WaveStem:
    stem = WaveStem()
    initialize(stem, "test", 0)
    return stem


@pytest.mark.parametrize("kernel", ["auto", "eager"])
def test_a_stem_takes_kernels_in_half_precision_and_without_a_gradient_of_pixels_alone(kernel):
    stem, pixels, spectrum = _stem(), _drawn(4, 8, 20), spectrum_of(range(500, 900, 20), [20] * 20)
    stem.kernel = kernel
    with FlopCounterMode(display=False) as counter:
        expected = stem(pixels, spectrum)
    assert "spectralforge" not in str(counter.get_flop_counts())
    with torch.autocast("cpu", torch.float16), FlopCounterMode(display=False) as counter:
        features = stem(pixels, spectrum)
        features.sum().backward()
    assert ("spectralforge.wave_matrix_gradient" in str(counter.get_flop_counts())) == (kernel == "auto")
    of_bands = 3 * stem.embedding.flops() - 2 * stem.embedding.fc1.weight.numel()
    assert counter.get_total_flops() == 32 * stem.training_flops(20) + 20 * of_bands
    assert features.dtype == torch.float16
    torch.testing.assert_close(features.float(), expected, rtol=5e-3, atol=5e-3)
    with torch.autocast("cpu", torch.float16), FlopCounterMode(display=False) as counter:
        stem(pixels.requires_grad_(), spectrum)
    assert "spectralforge" not in str(counter.get_flop_counts())
