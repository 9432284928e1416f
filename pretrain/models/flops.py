"""Counting floating-point operations: a multiply-add is 2; norms, activations and losses are not counted."""

import copy

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Parts = dict[str, int]
"""Operations by part of the network."""


def count_flops(module: nn.Module, *inputs: Tensor) -> int:
    """Count the operations of a forward with torch's counter, on the meta device: nothing is computed.

    Args:
        inputs: on the meta device.
    """
    outline = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        outline(*inputs)
    return counter.get_total_flops()


def times(factor: int, parts: Parts) -> Parts:
    """Multiply every part."""
    return {name: factor * value for name, value in parts.items()}


def add(one: Parts, other: Parts) -> Parts:
    """Add part by part."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}
