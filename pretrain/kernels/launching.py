"""Where Triton kernels can run, and how they are launched.

A kernel is the body of a custom operator (``spectralforge::...``) with a fake implementation, so autograd, checkpoints,
torch.compile and counters of operations see one operation with tensors in and out. Modules that define kernels import
Triton, which torch brings along for CUDA only: import them where `usable` is true.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

MIN_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs, A100, whose bf16 products the kernels use."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Launch:
    """What a kernel was launched with.

    Attributes:
        kernel: the jitted function.
        arguments: tensors and numbers, in order.
        constants: constexpr parameters, and options of the compiler.
        num_warps: warps of 32 threads for each program.
    """

    kernel: Any
    arguments: Sequence[Any]
    constants: dict[str, Any]
    num_warps: int


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)
_interpreting: ContextVar[bool] = ContextVar("interpreting", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
    """Run a kernel on the grid, or only record it inside of `recording`."""
    recorded = _recorded.get()
    if recorded is not None:
        recorded.append(Launch(kernel, arguments, constants, num_warps))
    else:
        kernel[grid](*arguments, num_warps=num_warps, **constants)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Record launches instead of running them, so that kernels can be compiled for GPUs that aren't there."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def usable(x: Tensor) -> bool:
    """Return whether kernels can run on a tensor: on a GPU, or anywhere inside of `interpreting`."""
    if x.dtype not in (*DTYPES, torch.int16):
        return False
    return kernels_problem(x.device) is None


def kernels_problem(device: torch.device) -> str | None:
    """Return why Triton kernels can't run on a device, or None."""
    if _interpreting.get():
        return None
    if device.type != "cuda":
        return f"Triton's kernels run on GPUs, this process has {device.type}"
    return _gpu_problem(device.index or 0)


@contextmanager
def interpreting(enabled: bool = True) -> Iterator[None]:
    """Run kernels on CPU tensors, too, in Triton's interpreter, which is slow, or no longer.

    Triton must have been imported with TRITON_INTERPRET=1 in the environment.
    """
    token = _interpreting.set(enabled)
    try:
        yield
    finally:
        _interpreting.reset(token)


@cache
def _gpu_problem(index: int) -> str | None:
    if find_spec("triton") is None:
        return "Triton isn't installed; pip install triton, in the version that torch asks for"
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        return (
            f"Triton's kernels need compute capability 8.0, {torch.cuda.get_device_name(index)} has %d.%d" % capability
        )
    return None


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Turn a function that launches kernels, and mutates nothing, into the custom operator ``spectralforge::name``."""
    return torch.library.custom_op(f"spectralforge::{name}", mutates_args=())
