"""Functions of a transformer block whose backward passes also sum the gradients of biases, by Triton kernels.

Torch reads the gradient of each linear layer's output once more to sum it over tokens for the bias. Here the kernel
that writes the gradient sums it as well. So a product takes its bias as a constant (`constant_bias_linear`), and the
function behind it returns the gradient of the bias.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def constant_bias_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer, without a gradient for its bias.

    One whose bias is frozen is called as it is: its forward may add something to the product (see lora.py).
    """
    return F.linear(x, layer.weight, layer.bias.detach()) if layer.bias.requires_grad else layer(x)


def gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Compute the exact GELU of (..., N).

    Args:
        bias: (N,), contained in ``x``; it gets its gradient here.
    """
    return _Gelu.apply(x, bias)


def split_heads(projected: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split (B, T, 3 * D) into queries, keys and values, each (B, T, heads, D / heads).

    Args:
        bias: (3 * D,), contained in ``projected``; it gets its gradient here.
    """
    return _SplitHeads.apply(projected, bias, heads)


def add_norm(x: Tensor, update: Tensor, bias: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return x + update and its layer norm, each (..., D).

    Args:
        bias: (D,), contained in ``update``; it gets its gradient here.
    """
    return _AddNorm.apply(x, update, bias, norm.weight, norm.bias, norm.eps)


def keep_and_norm(x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return x and its layer norm, whose gradients are added in one pass."""
    return _AddNorm.apply(x, None, None, norm.weight, norm.bias, norm.eps)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        from pretrain.kernels.bias_sums import gelu_backward  # imports Triton

        return gelu_backward(d_out, *ctx.saved_tensors)


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, ...]:
        return projected.unflatten(2, (3, heads, -1)).unbind(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        from pretrain.kernels.bias_sums import pack

        return *pack(*gradients), None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, update: Tensor | None, bias: Tensor | None, scale: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        from pretrain.kernels.residual_norm import add_norm

        ctx.adds = update is not None
        total, normed, moments = add_norm(x, update, scale, shift, eps)
        total = total if ctx.adds else x
        ctx.save_for_backward(total, scale, moments)
        return total if ctx.adds else x.view_as(x), normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, d_normed: Tensor) -> tuple[Tensor | None, ...]:
        from pretrain.kernels.residual_norm import norm_backward

        d_x, sums = norm_backward(d_normed, d_total, *ctx.saved_tensors)
        d_scale, d_shift, d_bias = sums.unbind()
        return (d_x, d_x, d_bias, d_scale, d_shift, None) if ctx.adds else (d_x, None, None, d_scale, d_shift, None)
