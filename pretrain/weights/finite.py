"""Weights that are finite: NaN and infinity spread through a network within a step, and some scores hide them."""

from collections.abc import Mapping

import torch
from torch import Tensor


def find_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds NaN or infinity, e.g. ``'norm.weight' has 3 non-finite values of 384``; else None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            bad = int((~torch.isfinite(_computable(tensor))).sum())
            return f"'{name}' has {bad} non-finite values of {tensor.numel()}"
    return None


def is_finite(tensor: Tensor) -> bool:
    """Whether no value of a floating-point tensor is NaN or infinite."""
    values = _computable(tensor)
    # anything non-finite makes the sum non-finite: one pass without a copy for those that are as they should be
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _computable(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()  # float8 has no arithmetic
