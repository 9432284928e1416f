"""Kernels of a transformer block's backward pass, run by Triton's interpreter, against torch's autograd in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.fused_block import add_norm, gelu, keep_and_norm, split_heads
from pretrain.models.initialize import initialize
from pretrain.models.lora import add_updates
from pretrain.models.patches import gather_tokens
from pretrain.models.transformer import Block, set_block_kernels

pytestmark = pytest.mark.usefixtures("interpreter")

BATCH, TOKENS, MANY, WIDTH, HEADS = 2, 17, 130, 144, 2
"""More tokens than a program of each kernel takes, and a width that is no multiple of a program's columns."""


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _results(function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return outputs and gradients of inputs, for one fixed gradient of the outputs."""
    leaves = [value.to(dtype, copy=True).requires_grad_() for value in inputs]
    outputs = function(*leaves)
    sum((y * _drawn(*y.shape, seed=9).to(dtype)).sum() for y in outputs).backward()
    return [*(y.detach() for y in outputs), *(leaf.grad for leaf in leaves)]


def _errors(results: list[Tensor], expected: list[Tensor]) -> Tensor:
    return torch.stack([(a.double() - b).norm() / b.norm() for a, b in zip(results, expected, strict=True)])


def _layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], scale, shift, 1e-6)


def _norm(scale: Tensor, shift: Tensor) -> nn.LayerNorm:
    """Return a module whose weights are these tensors."""
    norm = nn.LayerNorm(len(scale), eps=1e-6)
    del norm.weight, norm.bias
    norm.weight, norm.bias = scale, shift
    return norm


X, LONG = _drawn(BATCH, TOKENS, WIDTH), _drawn(BATCH, MANY, WIDTH)
BIAS, SCALE = _drawn(WIDTH, seed=1), 1 + _drawn(WIDTH, seed=2) / 4
CASES = {
    "gelu": ([LONG, BIAS], lambda x, bias: (F.gelu(x + bias),), lambda x, bias: (gelu(x + bias.detach(), bias),)),
    "heads": (
        [_drawn(BATCH, MANY, 3 * WIDTH), _drawn(3 * WIDTH, seed=3)],
        lambda x, bias: (x + bias).unflatten(2, (3, HEADS, -1)).unbind(2),
        lambda x, bias: split_heads(x + bias.detach(), bias, HEADS),
    ),
    "sum and norm": (
        [X, _drawn(BATCH, TOKENS, WIDTH, seed=4), BIAS, SCALE, BIAS / 2],
        lambda x, y, bias, *norm: (x + (y + bias), _layer_norm(x + (y + bias), *norm)),
        lambda x, y, bias, *norm: add_norm(x, y + bias.detach(), bias, _norm(*norm)),
    ),
    "norm": (
        [X, SCALE, BIAS],
        lambda x, *norm: (x, _layer_norm(x, *norm)),
        lambda x, *norm: keep_and_norm(x, _norm(*norm)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_torch(name):
    inputs, plain, fused = CASES[name]
    exact = _results(plain, inputs, torch.float64)
    assert _errors(_results(fused, inputs, torch.float32), exact).max() < 1e-5
    halves = [value.half() for value in inputs]
    exact = _results(plain, [value.double() for value in halves], torch.float64)
    eager, kernels = (_errors(_results(function, halves, torch.float16), exact) for function in (plain, fused))
    assert (kernels <= 1.2 * eager + 1e-4).all(), (kernels, eager)


def _block_results(dtype: torch.dtype, fuses: bool, has_updates: bool = False, **inputs) -> list[Tensor]:
    block = Block(WIDTH, HEADS, 4 * WIDTH, "math")
    initialize(block, "test", 0)
    if has_updates:
        add_updates(block, ("qkv", "proj"), 2, 4.0, 0)
        for parameter in (block.attn.qkv.lora.b, block.attn.proj.lora.b):
            parameter.data.copy_(0.02 * _drawn(*parameter.shape))
    for parameter in block.parameters():
        parameter.data.copy_(parameter.data.half() if parameter.dim() > 1 else parameter.data + 0.125)
    block = block.to(dtype)
    if fuses:
        set_block_kernels(block, torch.device("cpu"))
    x = X.half().to(dtype).requires_grad_()
    output = block(x, **inputs)
    (output * _drawn(*output.shape, seed=9).half().to(dtype)).sum().backward()
    return [output.detach(), x.grad, *(parameter.grad for parameter in block.parameters() if parameter.requires_grad)]


IDS = torch.arange(8).expand(BATCH, -1)


@pytest.mark.parametrize(
    "inputs",
    [{}, {"ids": IDS}, {"spread": lambda tokens: gather_tokens(tokens, 3 + IDS)}, {"has_updates": True}],
    ids=["all tokens", "some outputs", "equal tokens", "LoRA"],
)
def test_a_block_with_kernels_is_as_exact_as_an_eager_one(inputs):
    exact = _block_results(torch.float64, fuses=False, **inputs)
    eager, kernels = (_errors(_block_results(torch.float16, fuses, **inputs), exact) for fuses in (False, True))
    assert (kernels <= 1.2 * eager + 1e-4).all(), (kernels, eager)
    assert not torch.equal(kernels, eager)  # the kernels ran


def test_weights_of_full_precision_and_evaluations_are_left_to_torch():
    for dtype, training in ((torch.float32, True), (torch.float16, False)):
        block = Block(WIDTH, HEADS, 4 * WIDTH, "math").to(dtype).train(training)
        initialize(block, "test", 0)
        expected = block(X.to(dtype))
        set_block_kernels(block, torch.device("cpu"))
        assert block.fuses
        assert torch.equal(block(X.to(dtype)), expected)
