"""Tensors on a device "cuda" without storage, which can be read and pinned."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from tools.fake_cuda.recorder import sync

READ = 0
"""What a read of the device gives: values don't exist, and 0 is a sound loss, norm and flag."""


class FakeCudaMode(FakeTensorMode):
    """A FakeTensorMode for whole training steps: reads return `READ`, and memory can be pinned."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and getattr(args[0], "constant", None) is None:
            if args[0].is_cuda:
                sync("item")
            return READ
        if func is torch.ops.aten._pin_memory.default:
            return _pin(func, *args, **kwargs)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if kwargs.get("pin_memory") or (func.is_view and is_pinned(args[0])):
            _mark_pinned(result)
        return result


def is_pinned(tensor: Tensor) -> bool:
    """Return whether a tensor's memory is pinned, or would be."""
    if isinstance(tensor, FakeTensor):
        return getattr(tensor, "pinned", False)
    with unset_fake_temporarily():
        return tensor.device.type == "cpu" and tensor.is_pinned()


def _mark_pinned(result: Any) -> None:
    for tensor in result if isinstance(result, list | tuple) else [result]:
        tensor.pinned = True


def _pin(func: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if isinstance(tensor, FakeTensor):
        pinned = tensor.clone()
        _mark_pinned(pinned)
        return pinned
    with unset_fake_temporarily():
        return func(tensor, *args, **kwargs)
