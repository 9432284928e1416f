"""Attention: one layout, kernels that agree, and a clear word where one can't run."""

import pytest
import torch

from pretrain.models import attention as module
from pretrain.models.attention import attention, check_backend
from shards.errors import ConfigError

SHAPES = [(1, 1, 1, 32), (2, 17, 3, 64), (2, 33, 2, 80), (3, 8, 16, 32), (1, 65, 4, 64)]


def _qkv(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sdpa_is_the_plain_formula(shape):
    query, key, value = _qkv(shape)
    expected = attention(query, key, value, "math")
    assert expected.shape == shape
    torch.testing.assert_close(attention(query, key, value, "sdpa"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_sdpa_are_those_of_the_plain_formula(shape):
    gradients = []
    for backend in ("sdpa", "math"):
        inputs = [x.requires_grad_() for x in _qkv(shape)]
        (attention(*inputs, backend) * _qkv(shape)[0]).sum().backward()
        gradients.append([x.grad for x in inputs])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "math"])
def test_each_sample_and_head_attends_to_its_own_tokens(backend):
    """Layout (batch, tokens, heads, head dim), against one softmax per sample, head and query."""
    query, key, value = _qkv((2, 5, 3, 32), torch.float64)
    out = attention(query, key, value, backend)
    for sample in range(2):
        for head in range(3):
            for token in range(5):
                scores = key[sample, :, head] @ query[sample, token, head] / 32**0.5
                expected = scores.softmax(0) @ value[sample, :, head]
                torch.testing.assert_close(out[sample, token, head], expected)


def test_auto_on_a_cpu_is_sdpa():
    query, key, value = _qkv((2, 9, 2, 64), torch.bfloat16)
    assert torch.equal(attention(query, key, value), attention(query, key, value, "sdpa"))


@pytest.mark.parametrize("installed", [False, True])
def test_xformers_on_a_cpu_is_a_clear_error(monkeypatch, installed):
    kernel = (lambda query, key, value: value) if installed else None
    monkeypatch.setattr(module, "_xformers", lambda: kernel)
    with pytest.raises(RuntimeError, match=r"needs a GPU and the extra 'gpu'; use model.attention=auto"):
        attention(*_qkv((1, 4, 1, 32)), "xformers")


RUNS = [(3, 5), (2, 9), (1, 1)]  # three sequences of 5 tokens, two of 9, one of 1


@pytest.mark.parametrize("backend", ["sdpa", "math"])
@pytest.mark.parametrize("dim", [32, 64, 80])
def test_packed_sequences_attend_within_themselves(backend, dim):
    query, key, value = (x.requires_grad_() for x in _qkv((1, 34, 3, dim)))
    packed = attention(query, key, value, backend, RUNS)
    lengths = [length for count, length in RUNS for _ in range(count)]
    parts = zip(*(x.split(lengths, 1) for x in (query, key, value)), strict=True)
    alone = torch.cat([attention(*part, "math") for part in parts], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    weight = torch.arange(packed.numel(), dtype=torch.float32).view_as(packed).cos()
    gradients = [torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (packed, alone)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="xformers' kernels need a GPU")
@pytest.mark.parametrize("runs", [None, [(2, 20), (1, 24)]])
@pytest.mark.parametrize("dim", [32, 64, 80])
def test_xformers_is_sdpa(dim, runs):
    query, key, value = (x.cuda() for x in _qkv((1, 64, 4, dim), torch.bfloat16))
    expected = attention(query, key, value, "sdpa", runs)
    torch.testing.assert_close(attention(query, key, value, "xformers", runs), expected, rtol=2e-2, atol=2e-2)


def test_xformers_that_can_not_run_is_refused_before_a_run_begins(monkeypatch):
    check_backend("auto", torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"key 'model\.attention': xformers runs on GPUs, .* cpu: write auto"):
        check_backend("xformers", torch.device("cpu"))
    monkeypatch.setattr(module, "_xformers", lambda: None)
    with pytest.raises(ConfigError, match=r"xformers is not installed for this torch: pip install"):
        check_backend("xformers", torch.device("cuda"))
    monkeypatch.setattr(module, "_xformers", lambda: lambda query, key, value: value)
    check_backend("xformers", torch.device("cuda"))
