"""Counting floating-point operations: a multiply-add is 2; norms, activations and losses are not counted."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

Parts = dict[str, int]
"""Operations by part of the network."""


def count_flops(module: nn.Module, shape: Sequence[int]) -> int:
    """Count the operations of a forward with torch's counter, on tensors without contents: nothing is computed.

    Args:
        shape: of the input.
    """
    outline = copy.deepcopy(module).eval()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
        functional_call(outline, empty, torch.empty(*shape))
    return counter.get_total_flops()


def times(factor: int, parts: Parts) -> Parts:
    """Multiply every part."""
    return {name: factor * value for name, value in parts.items()}


def add(first: Parts, second: Parts) -> Parts:
    """Add part by part."""
    return {name: first.get(name, 0) + second.get(name, 0) for name in first | second}
