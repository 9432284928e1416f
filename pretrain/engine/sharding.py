"""How ZeRO-3 divides a tensor among ranks."""

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
