"""Attention: one layout, kernels that agree, and a clear word where one can't run."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

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


@pytest.fixture
def stub(monkeypatch):
    """Stands in for xformers: a callable that says what the installed package is like, or that there is none."""

    def install(loads: bool | None, build: str = "2.10.0+cu128") -> None:
        module.xformers_problem.cache_clear()
        module._block_diagonal.cache_clear()
        monkeypatch.setattr(module, "find_spec", lambda name: None if loads is None else object())
        error = None if loads else SimpleNamespace(build_info=SimpleNamespace(torch_version=build))
        package, ops, fmha, bias = (ModuleType(f"xformers{name}") for name in ("", ".ops", ".ops.fmha", ".bias"))
        package.__path__, package.__version__, package._has_cpp_library = [], "0.0.35", bool(loads)
        package._cpp_lib = SimpleNamespace(_cpp_library_load_exception=error)
        package.ops, ops.memory_efficient_attention = ops, _kernel
        bias.BlockDiagonalMask = SimpleNamespace(from_seqlens=lambda lengths, device: (lengths, device))
        names = {"xformers": package, "xformers.ops": ops, "xformers.ops.fmha": fmha}
        for name, each in (names | {"xformers.ops.fmha.attn_bias": bias}).items():
            monkeypatch.setitem(sys.modules, name, each)

    yield install
    monkeypatch.undo()
    module.xformers_problem.cache_clear()
    module._block_diagonal.cache_clear()


def _kernel(query, key, value, attn_bias):
    return attn_bias


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("loads", [None, False, True])
def test_xformers_on_a_cpu_is_a_clear_error(stub, loads):
    stub(loads)
    reason = {None: "xformers is not installed", False: "does not load", True: "it runs on GPUs"}[loads]
    with pytest.raises(RuntimeError, match=rf"attention 'xformers': .*{reason}.*; use model.attention=auto"):
        attention(*_qkv((1, 4, 1, 32)), "xformers")


@pytest.mark.parametrize("loads", [None, False, True])
def test_auto_takes_xformers_where_its_extension_is_loaded(stub, loads):
    stub(loads)
    inputs = [x.as_subclass(OnGpu) for x in _qkv((1, 4, 1, 32), torch.bfloat16)]
    packed = attention(*inputs, seqlens=[(2, 1), (1, 2)])
    if loads:
        assert packed == ([1, 1, 2], inputs[0].device)
        assert attention(*inputs, seqlens=[(2, 1), (1, 2)]) is packed  # the mask is made once
    else:
        assert packed.shape == (1, 4, 1, 32)


def test_a_mask_is_made_for_each_device(stub):
    stub(True)
    masks = [module._block_diagonal(((2, 3),), torch.device("cuda", number)) for number in (0, 1, 0)]
    assert [device.index for _, device in masks] == [0, 1, 0]
    assert masks[0] is masks[2]


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


def test_xformers_that_can_not_run_is_refused_before_a_run_begins(stub, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("pretrain.console.log", said.append)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    stub(None)
    check_backend("auto", cpu)
    check_backend("auto", gpu)
    with pytest.raises(ConfigError, match=r"key 'model\.attention': xformers runs on GPUs, .* cpu: write auto"):
        check_backend("xformers", cpu)
    with pytest.raises(ConfigError, match=r"xformers is not installed: pip install 'torch==2\.10\.0' 'xformers"):
        check_backend("xformers", gpu)
    assert said == []
    stub(False)
    with pytest.raises(
        ConfigError, match=r"xformers 0\.0\.35 does not load: it is built for torch 2\.10\.0\+cu128"
    ) as info:
        check_backend("xformers", gpu)
    assert "\n" not in str(info.value)
    check_backend("auto", gpu)
    assert len(said) == 1 and "torch's attention is used; pip install" in said[0]
    stub(True)
    check_backend("xformers", gpu)
    check_backend("auto", gpu)
    assert len(said) == 1


def test_the_installed_xformers_is_built_for_the_cuda_of_this_torch():
    found = find_spec("xformers")
    if found is None or found.origin is None:
        pytest.skip("xformers is not installed: it comes with the extra gpu")
    if torch.version.cuda is None:
        pytest.skip("this torch is built for CPUs")
    build = json.loads((Path(found.origin).parent / "cpp_lib.json").read_text())["version"]
    assert build["cuda"] // 100 == int(torch.version.cuda.split(".")[0])
    assert build["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert importlib.import_module("xformers")._has_cpp_library


def test_the_pinned_pair_is_the_one_that_messages_name():
    pins = (Path(__file__).parents[4] / "constraints-gpu.txt").read_text().splitlines()
    assert [name in pins for name in module.XFORMERS_PAIR.replace("'", "").split()[2:]] == [True, True]
