"""How ZeRO-3 divides a tensor among ranks."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Piece:
    """Part of a tensor.

    Attributes:
        start: number of the first element in the tensor.
        values: the elements, (n,).
    """

    start: int
    values: Tensor


def range_of(numel: int) -> tuple[int, int]:
    """Return the first element of this rank's 1/N of a tensor and the number of elements, padding excluded."""
    size = -(-numel // distributed.world_size())
    start = min(distributed.rank() * size, numel)
    return start, min(size, numel - start)


def own_piece(values: Tensor) -> Piece:
    """Return this rank's 1/N of a tensor that all ranks have, without a copy where it is contiguous."""
    start, count = range_of(values.numel())
    return Piece(start, values.flatten()[start : start + count])
