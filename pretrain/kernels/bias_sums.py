"""Gradients that are written and summed over tokens in one pass: the sums are the gradient of a linear layer's bias.

Torch writes the gradient of a layer's output and reads all of it again for the bias. Programs sum their share of the
tokens in fp32, and `launch_share_sums` adds the shares in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pretrain.kernels.launching import launch, operator

ROWS, STEP, COLUMNS = 256, 32, 128
"""Tokens of a program, those that it holds at once, and its columns."""


def launch_gelu_backward(d_out: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the exact GELU's input, like ``x``, and its sum over tokens (N,).

    Args:
        d_out: gradient of the output, (..., N).
        x: input (..., N).
    """
    d_out, x = d_out.contiguous(), x.contiguous()
    d_x, sums = _gelu_outputs(d_out, x)
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    shares = x.new_empty(triton.cdiv(rows, ROWS), width, dtype=torch.float32)
    grid = (len(shares), triton.cdiv(width, COLUMNS))
    sizes = {"ROWS": ROWS, "STEP": STEP, "COLUMNS": COLUMNS}
    launch(_gelu_backward, grid, d_out, x, d_x, shares, rows, width, **sizes)
    launch_share_sums(shares, sums)
    return d_x, sums


def launch_pack(d_query: Tensor, d_key: Tensor, d_value: Tensor) -> tuple[Tensor, Tensor]:
    """Put three gradients side by side, and sum them over tokens.

    Args:
        d_query, d_key, d_value: (B, T, heads, head dim).

    Returns:
        The gradients (B, T, 3 * heads * head dim), and their sums (3 * heads * head dim,).
    """
    sources = [gradient.contiguous() for gradient in (d_query, d_key, d_value)]
    packed, sums = _pack_outputs(*sources)
    rows, width = packed.shape[0] * packed.shape[1], packed.shape[2] // 3
    shares = packed.new_empty(triton.cdiv(rows, ROWS), 3 * width, dtype=torch.float32)
    grid = (len(shares), triton.cdiv(width, COLUMNS), 3)
    sizes = {"ROWS": ROWS, "STEP": STEP, "COLUMNS": COLUMNS}
    launch(_pack, grid, *sources, packed, shares, rows, width, **sizes)
    launch_share_sums(shares, sums)
    return packed, sums


def launch_share_sums(shares: Tensor, sums: Tensor) -> None:
    """Add shares (S, N), fp32, into ``sums`` (N,)."""
    count, width = shares.shape
    launch(_share_sums, (triton.cdiv(width, COLUMNS),), shares, sums, count, width, STEP=STEP, COLUMNS=COLUMNS)


def _gelu_outputs(_: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs without contents."""
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[-1])


def _pack_outputs(d_query: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, dim = d_query.shape
    return d_query.new_empty(batch, tokens, 3 * heads * dim), d_query.new_empty(3 * heads * dim)


gelu_backward = operator("gelu_backward")(launch_gelu_backward)
gelu_backward.register_fake(_gelu_outputs)

pack = operator("pack_gradients")(launch_pack)
pack.register_fake(_pack_outputs)


@triton.jit
def _gelu_backward(d_out, x, d_x, shares, rows, width, ROWS: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr):
    share = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(0, ROWS, STEP):
        row = share * ROWS + begin + tl.arange(0, STEP)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        slope = 0.5 * (1 + tl.erf(value * 0.7071067811865476))
        slope += value * tl.exp(-0.5 * value * value) * 0.3989422804014327
        gradient = tl.load(d_out + place, mask=inside, other=0.0).to(tl.float32) * slope
        tl.store(d_x + place, gradient, mask=inside)
        total += tl.sum(gradient, 0)
    tl.store(shares + share * width + column, total, mask=column < width)


@triton.jit
def _pack(
    d_query, d_key, d_value, packed, shares, rows, width, ROWS: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr
):
    share, part = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    source = d_query
    if part == 1:
        source = d_key
    if part == 2:
        source = d_value
    total = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(0, ROWS, STEP):
        row = share * ROWS + begin + tl.arange(0, STEP)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        row = row.to(tl.int64)[:, None]
        gradient = tl.load(source + row * width + column[None, :], mask=inside, other=0.0)
        tl.store(packed + row * 3 * width + part * width + column[None, :], gradient, mask=inside)
        total += tl.sum(gradient.to(tl.float32), 0)
    tl.store(shares + (share * 3 + part) * width + column, total, mask=column < width)


@triton.jit
def _share_sums(shares, sums, count, width, STEP: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(0, count, STEP):
        row = begin + tl.arange(0, STEP)
        inside = (row < count)[:, None] & (column < width)[None, :]
        total += tl.sum(tl.load(shares + row[:, None] * width + column[None, :], mask=inside, other=0.0), 0)
    tl.store(sums + column, total, mask=column < width)
