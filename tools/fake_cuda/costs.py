"""What one kernel costs: the bytes that it reads and writes, its FLOPs, and its time by the roofline."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

from launch.planner.machines import Machine

MATMUL_SHARE = 0.72
"""Share of the peak that large matrix products reach."""

BANDWIDTH_SHARE = 0.90
"""Share of the memory bandwidth that elementwise kernels reach."""

LAUNCH = 2e-6
"""Shortest time of a kernel, in seconds."""

_FREE = {"_unsafe_view", "_reshape_alias", "detach", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty"}
_FREE |= {"new_empty_strided", "record_stream", "device", "set_", "resize_", "_has_compatible_shallow_copy_type"}
_GATHERS = {"gather", "index", "index_select", "embedding"}
_SCATTERS = {"scatter_", "scatter_add_", "index_copy_", "index_put_", "_index_put_impl_", "index_add_"}
_FILLS = {"zero_", "fill_", "copy_", "uniform_", "normal_", "random_"}


@dataclass(frozen=True)
class Cost:
    """One kernel.

    Attributes:
        bytes: read and written.
        flops: of matrix products, convolutions and attention.
        half: whether it computes in 16 bits.
    """

    bytes: int
    flops: int
    half: bool

    def seconds(self, machine: Machine) -> float:
        """Return the time on a machine: the longer of arithmetic and memory traffic, and at least a launch."""
        peak = machine.peak("bf16" if self.half else "fp32") * MATMUL_SHARE
        return max(self.flops / peak, self.bytes / (machine.hbm * BANDWIDTH_SHARE), LAUNCH)


def tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))


def launches(operation: OpOverload) -> bool:
    """Return whether an operation runs a kernel; views and allocations don't."""
    return not operation.is_view and operation._schema.name.rpartition("::")[2] not in _FREE


def cost(operation: OpOverload, args: Any, kwargs: Any, result: Any) -> Cost:
    """Return the cost of an operation that runs as one kernel."""
    inputs, outputs = list(tensors([args, kwargs])), list(tensors(result))
    packet = operation._overloadpacket
    flops = int(flop_registry[packet](*args, **kwargs, out_val=result)) if packet in flop_registry else 0
    half = bool(inputs) and inputs[0].dtype in (torch.bfloat16, torch.float16)
    return Cost(_traffic(operation, inputs, outputs), flops, half)


def _traffic(operation: OpOverload, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Sum the bytes of inputs and outputs; less where an operation uses only parts of them."""
    name = operation._schema.name.rpartition("::")[2]
    if name in _GATHERS:
        return 2 * _sum(outputs) + _sum(inputs[1:])
    if name in _SCATTERS:
        return 2 * _sum(inputs[1:])  # what is written has the size of the values
    if name in _FILLS:
        return _sum(inputs)  # the first one is overwritten, not read
    return _sum(inputs) + _sum(outputs)


def _sum(values: list[Tensor]) -> int:
    return sum(size(value) for value in values)


def size(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements; expanded dimensions count once."""
    distinct = prod(length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return distinct * tensor.element_size()
