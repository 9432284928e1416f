"""How ZeRO-3 divides a tensor among ranks, and the norm of what is divided."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pretrain import distributed


def shard_of(values: Tensor) -> Tensor:
    """Return this rank's 1/N of a tensor, flat, fp32; the last rank's is padded with zeros."""
    world = distributed.world_size()
    flat = values.flatten().float()
    size = -(-flat.numel() // world)
    padded = torch.cat([flat, flat.new_zeros(size * world - flat.numel())])
    return padded.view(world, size)[distributed.rank()].clone()


def global_norm(parts: Iterable[Tensor]) -> Tensor:
    """Compute the norm of tensors of which each rank has other parts, float64 () on the device, with one all-reduce."""
    squares = torch.stack(torch._foreach_norm(list(parts), 2, torch.float64)).square().sum()
    return distributed.all_reduce_sum(squares).sqrt()
