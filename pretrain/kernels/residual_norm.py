"""Layer norms of a residual stream together with their neighbors.

Forward, a kernel adds the update of the stream and normalizes the sum. Backward, one adds the gradient that arrives
past the norm, and sums over tokens for scale, shift and the bias behind the update; torch takes three passes for each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pretrain.kernels.bias_sums import launch_share_sums
from pretrain.kernels.launching import launch, operator

ROWS = 32
"""Tokens that a program of the backward pass takes, one after another."""


def launch_add_norm(
    x: Tensor, update: Tensor | None, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute x + update and its layer norm.

    Args:
        x, update: (..., D) of one dtype; without an update, ``x`` itself is normalized.
        scale, shift: (D,).

    Returns:
        The sum, empty without an update; the normalized tokens; mean and reciprocal deviation of each token, fp32
        (2, tokens).
    """
    x, update = x.contiguous(), None if update is None else update.contiguous()
    total, normed, moments = _outputs(x, update)
    width, rows = x.shape[-1], moments.shape[1]
    sources = (x, x if update is None else update, scale, shift)
    launch(
        _add_norm,
        (rows,),
        *(*sources, total, normed, moments, rows, eps),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADDS=update is not None,
    )
    return total, normed, moments


def launch_norm_backward(
    d_normed: Tensor, d_total: Tensor, total: Tensor, scale: Tensor, moments: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradient of what was normalized, and sums over tokens.

    Args:
        d_normed, d_total: gradients of the normalized tokens, and of ``total`` past the norm, (..., D).
        total: what was normalized.
        moments: of each token, (2, tokens).

    Returns:
        The gradient, like ``total``; the gradients of scale and shift and the sum of the first, (3, D).
    """
    d_normed, d_total, total = d_normed.contiguous(), d_total.contiguous(), total.contiguous()
    d_x, sums = _gradients(d_normed, d_total, total, scale, moments)
    width, rows = total.shape[-1], moments.shape[1]
    shares = moments.new_empty(triton.cdiv(rows, ROWS), 3 * width)
    launch(
        _norm_backward,
        (len(shares),),
        *(d_normed, d_total, total, scale, moments, d_x, shares, rows),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ROWS=ROWS,
    )
    launch_share_sums(shares, sums.flatten())
    return d_x, sums


def _outputs(x: Tensor, update: Tensor | None, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs without contents."""
    tokens = x.numel() // x.shape[-1]
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = x.new_empty(0) if update is None else torch.empty_like(normed)
    return total, normed, x.new_empty(2, tokens, dtype=torch.float32)


def _gradients(_: Tensor, __: Tensor, total: Tensor, scale: Tensor, ___: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(total, memory_format=torch.contiguous_format), scale.new_empty(3, len(scale))


add_norm = operator("add_norm")(launch_add_norm)
add_norm.register_fake(_outputs)

norm_backward = operator("norm_backward")(launch_norm_backward)
norm_backward.register_fake(_gradients)


@triton.jit
def _add_norm(
    x,
    update,
    scale,
    shift,
    total,
    normed,
    moments,
    rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = row * WIDTH + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        rounded = (value + tl.load(update + place, mask=inside, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=inside)
        value = rounded.to(tl.float32)
    mean = tl.sum(value) / WIDTH
    centered = tl.where(inside, value - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centered * centered) / WIDTH + eps)
    slope = tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, centered * inverse * slope + offset, mask=inside)
    tl.store(moments + row, mean)
    tl.store(moments + rows + row, inverse)


@triton.jit
def _norm_backward(
    d_normed,
    d_total,
    total,
    scale,
    moments,
    d_x,
    shares,
    rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    share = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    slope = tl.load(scale + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    d_scale, d_shift = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    summed = tl.zeros((BLOCK,), tl.float32)
    for number in range(ROWS):
        row = (share * ROWS + number).to(tl.int64)
        inside = (column < WIDTH) & (row < rows)
        place = row * WIDTH + column
        mean = tl.load(moments + row, mask=row < rows, other=0.0)
        inverse = tl.load(moments + rows + row, mask=row < rows, other=0.0)
        value = tl.load(total + place, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(d_normed + place, mask=inside, other=0.0).to(tl.float32)
        normed = tl.where(inside, (value - mean) * inverse, 0.0)
        weighed = gradient * slope
        through = (weighed - (tl.sum(weighed) + normed * tl.sum(weighed * normed)) / WIDTH) * inverse
        through += tl.load(d_total + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_x + place, through, mask=inside)
        d_scale += gradient * normed
        d_shift += gradient
        summed += tl.where(inside, through, 0.0)
    first = shares + share * 3 * WIDTH + column
    tl.store(first, d_scale, mask=column < WIDTH)
    tl.store(first + WIDTH, d_shift, mask=column < WIDTH)
    tl.store(first + 2 * WIDTH, summed, mask=column < WIDTH)
