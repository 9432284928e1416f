"""Norms of gradients, and clipping by them, in one arithmetic at all ZeRO stages: equal losses need equal roundings."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pretrain import distributed


def local_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Compute the norm of gradients that every rank has, float64 () on the device."""
    return _sum_of_squares(gradients).sqrt()


def global_norm(parts: Iterable[Tensor]) -> Tensor:
    """Compute the norm of gradients of which each rank has other parts, as `local_norm`, with one all-reduce."""
    return distributed.all_reduce_sum(_sum_of_squares(parts)).sqrt()


def clip(gradients: list[Tensor], norm: Tensor, largest: float) -> None:
    """Scale gradients of a norm in place so that it is at most ``largest``, as DeepSpeed does at stages 1 to 3."""
    if gradients:
        torch._foreach_mul_(gradients, 1 / ((norm.float() + 1e-6) / largest).clamp(min=1))


def _sum_of_squares(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors), 2, torch.float64)).square().sum()
