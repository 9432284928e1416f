"""Replaces the Python side of torch.cuda by versions that count their calls, for a device without streams and memory.

Streams and events do nothing; memory queries return zeros. The replacements stay for the rest of the process, which
has no other device.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tools.fake_cuda.mode import READ
from tools.fake_cuda.recorder import call, sync

CAPABILITY = (9, 0)
NAME = "NVIDIA H100 80GB HBM3"


class FakeStream:
    """A stream on which nothing runs."""

    device_index = stream_id = cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = torch.device("cuda", 0)

    def wait_stream(self, _: "FakeStream") -> None:
        call("Stream.wait_stream")

    def wait_event(self, _: "FakeEvent") -> None:
        call("Stream.wait_event")

    def record_event(self, event: "FakeEvent | None" = None) -> "FakeEvent":
        call("Event.record")
        return event or FakeEvent()

    def synchronize(self) -> None:
        sync("Stream.synchronize")

    def query(self) -> bool:
        return True

    def __enter__(self) -> "FakeStream":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FakeEvent:
    """An event that is always over."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        call("Event.record")

    def wait(self, *_: Any) -> None:
        call("Stream.wait_event")

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        sync("Event.synchronize")

    def elapsed_time(self, _: "FakeEvent") -> float:
        return 1.0


class _Properties:
    name = NAME
    major, minor = CAPABILITY
    total_memory = 80 * 2**30
    multi_processor_count = 132
    warp_size = 32
    max_threads_per_multi_processor = 2048
    regs_per_multiprocessor = 65536
    shared_memory_per_block_optin = 232448


def install() -> None:
    """Replace what this project, DeepSpeed and torch itself call of torch.cuda."""
    cuda: Any = torch.cuda
    _set(cuda, is_available=True, device_count=1, current_device=0, is_initialized=False, is_bf16_supported=True)
    _set(cuda, set_device=None, empty_cache=None, reset_peak_memory_stats=None, get_device_name=NAME)
    _set(cuda, memory_stats={}, memory_allocated=0, max_memory_allocated=0, memory_reserved=0, max_memory_reserved=0)
    _set(cuda, get_device_capability=CAPABILITY, get_device_properties=_Properties)
    cuda.Stream, cuda.Event = FakeStream, FakeEvent
    cuda.current_stream = cuda.default_stream = lambda *_, **__: FakeStream()
    cuda._lazy_init = lambda: None
    cuda._exchange_device, cuda._maybe_exchange_device = _constant(0), _constant(0)  # a handler each in torch.compile
    cuda.get_rng_state, cuda.set_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8), lambda *_: None
    cuda.default_generators = (torch.default_generator,)
    cuda.stream = lambda _: contextlib.nullcontext()
    cuda.synchronize = lambda *_, **__: sync("cuda.synchronize")
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *_, **__: None
    cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.version.cuda = "13.0"
    FakeTensorMode.avoid_device_init = True  # type: ignore[assignment]  # torch.tensor copies, and makes no CUDA tensor
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]
    FakeTensor.__deepcopy__ = _deepcopy  # type: ignore[assignment, method-assign]
    FakeTensor.tolist = _tolist  # type: ignore[method-assign]
    FakeTensor.numpy = _numpy  # type: ignore[assignment, method-assign]
    torch.Tensor.record_stream = lambda *_: call("Tensor.record_stream")  # type: ignore[method-assign]


def _apply(module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """Move or cast a module in place, as torch does by ``parameter.data = ...`` but refuses for FakeTensors."""
    for part in module.modules() if recurse else [module]:
        for parameter in part.parameters(recurse=False):
            moved = function(parameter.data)
            parameter.data = moved
            parameter.fake_device = moved.device  # type: ignore[attr-defined]
        part._buffers.update({name: function(buffer) for name, buffer in part.named_buffers(recurse=False)})
    return module


def _deepcopy(self: FakeTensor, memo: dict[int, Any]) -> torch.Tensor:
    """Copy a parameter or buffer; torch's own copies its storage, which doesn't exist."""
    copied = self.detach().clone()
    if isinstance(self, torch.nn.Parameter):
        copied = torch.nn.Parameter(copied, self.requires_grad)
    memo[id(self)] = copied
    return copied


def _tolist(self: FakeTensor) -> Any:
    """Read a whole tensor in one copy; torch's own would read element by element."""
    if self.is_cuda:
        sync("copy to host")
    if self.constant is not None:
        return self.constant.tolist()
    return np.full(self.shape, READ, float if self.is_floating_point() else int).tolist()


def _numpy(self: FakeTensor, **_: Any) -> np.ndarray:
    """Copy a tensor of the CPU to an array, as tables of bands are."""
    return np.asarray(_tolist(self), str(self.dtype).removeprefix("torch."))


def _set(module: Any, **answers: Any) -> None:
    """Let functions return constants."""
    for name, answer in answers.items():
        setattr(module, name, _constant(answer))


def _constant(answer: Any) -> Callable[..., Any]:
    return lambda *_, **__: answer
