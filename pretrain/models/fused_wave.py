"""The wave stem's map of pixels by Triton kernels (pretrain/kernels/wave.py), for products in half precision."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def wave_features(
    pixels: Tensor, matrix: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Compute the features (G, R, 128) of pixels (G, R, C) in the dtype of the matrix (G, C, 128).

    Args:
        pixels: in fp32, fp16 or bf16; they get no gradient.
        scale, shift: of the layer norm, (128,).
        weight, bias: of the linear layer, (128, 128) and (128,).
        eps: of the layer norm.
    """
    return _WaveFeatures.apply(pixels, matrix, scale, shift, weight, bias, eps)


class _WaveFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, matrix: Tensor, *weights: Any) -> Tensor:
        from pretrain.kernels.wave import features  # imports Triton

        scale, shift, weight, _, ctx.eps = weights
        result, products = features(pixels, matrix, *weights)
        ctx.save_for_backward(pixels, products, scale, shift, weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_features: Tensor) -> Any:
        from pretrain.kernels.wave import matrix_gradient, products_gradient

        pixels, products, scale, shift, weight = ctx.saved_tensors
        d_products, sums = products_gradient(d_features, products, scale, shift, weight, ctx.eps)
        d_matrix = matrix_gradient(pixels, d_products).sum(1, dtype=torch.float64).to(products.dtype)
        total = sums.sum((0, 1), dtype=torch.float64).to(weight.dtype)
        d_weight, (d_bias, d_scale, d_shift) = total[: len(weight)], total[len(weight) :]
        return None, d_matrix, d_scale, d_shift, d_weight, d_bias, None
