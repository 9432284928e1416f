"""Checks that weights are finite: NaN and infinity spread through a network, and some scores hide them."""

from collections.abc import Mapping

import torch
from torch import Tensor


def find_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Describe the first tensor with NaN or infinity: ``'norm.weight' has 3 non-finite values of 384``, or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            bad = int((~torch.isfinite(_computable(tensor))).sum())
            return f"'{name}' has {bad} non-finite values of {tensor.numel()}"
    return None


def is_finite(tensor: Tensor) -> bool:
    """Return whether no value of a floating-point tensor is NaN or infinite."""
    values = _computable(tensor)
    # a non-finite value makes the sum non-finite: finite tensors need one pass without a copy
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _computable(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()  # float8 has no arithmetic
