"""Counts the kernels, collectives and waits of a training step while it runs on tensors without storage."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from launch.planner.machines import Machine
from pretrain.metrics.phase_timer import PhaseTimer
from tools.fake_cuda.costs import Cost, cost, launches, size, tensors
from tools.fake_cuda.mode import is_pinned
from tools.fake_cuda.recorder import Recorder, caller

COMMUNICATION = "communication"
_LINEAR = "deepspeed/runtime/zero/linear.py"  # ZeRO-3's nn.functional.linear: the model's work
_WAITING_OPS = ("nonzero", "masked_select", "unique", "repeat_interleave")


@dataclass
class Work:
    """Kernels of one part of a step."""

    kernels: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0


@dataclass
class Collectives:
    """Collectives of one kind and dtype; ``bytes`` of the whole tensors."""

    count: int = 0
    bytes: int = 0


class Parts(PhaseTimer):
    """The part of the step that runs, as the trainer's own timer tells phases, but without its "other".

    What objectives do before and between forward passes is augmentation; what the module does outside of its networks
    is loss.
    """

    part = "augment"

    def __init__(self, module: nn.Module, momentum: nn.Module | None) -> None:
        super().__init__(module, momentum, torch.device("cpu"))
        module.register_forward_pre_hook(lambda *_: self.mark("loss"))
        module.register_forward_hook(lambda *_: self.mark("loss"))  # until the gradient of a network's output arrives

    def mark(self, phase: str | None) -> None:
        self._now = self.part = "augment" if phase in (None, "other") else phase


@dataclass
class StepCount:
    """The counts of one step.

    Attributes:
        work: kernels by part.
        collectives: by kind and dtype.
        recorder: of waits and other calls of the CUDA runtime.
    """

    work: dict[str, Work] = field(default_factory=lambda: defaultdict(Work))
    collectives: dict[tuple[str, str], Collectives] = field(default_factory=lambda: defaultdict(Collectives))
    recorder: Recorder = field(default_factory=Recorder)


class StepCounter(TorchDispatchMode):
    """Counts what runs inside it; enter it within a FakeTensorMode.

    Args:
        parts: knows the part that runs.
        machine: whose peak and bandwidth give the times.

    Attributes:
        count: so far.
    """

    def __init__(self, parts: Parts, machine: Machine) -> None:
        super().__init__()
        self.parts, self.machine, self.count = parts, machine, StepCount()
        self.is_muted = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled functions run compiled inside of this mode."""
        return True

    def __enter__(self) -> "StepCounter":
        global _counting
        _counting = self
        return super().__enter__()

    def __exit__(self, *details: Any) -> None:
        global _counting
        _counting = None
        super().__exit__(*details)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]
        if func.namespace == "prim" or self.is_muted:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func.namespace == "c10d":
            self._add_collective(name, [args, kwargs])
        elif any(tensor.is_cuda for tensor in tensors([args, kwargs, result])):
            self._look_for_waits(name, args, kwargs)
            if launches(func):
                self.add(cost(func, args, kwargs, result), self._part())
        return result

    def add(self, kernel: Cost, part: str) -> None:
        """Count a kernel of a part of the step."""
        work = self.count.work[part]
        work.kernels += 1
        work.bytes += kernel.bytes
        work.flops += kernel.flops
        work.seconds += kernel.seconds(self.machine)

    def _part(self) -> str:
        """Return the part that runs; DeepSpeed's copies of weights and gradients before the update communicate."""
        file = caller().file
        communicates = file.startswith("deepspeed/") and file != _LINEAR and self.parts.part != "optimizer"
        return COMMUNICATION if communicates else self.parts.part

    def _add_collective(self, name: str, values: Any) -> None:
        found = list(tensors(values))
        if not found:  # a barrier
            self.count.recorder.sync(name)
            return
        collectives = self.count.collectives[_kind(name), str(found[0].dtype).removeprefix("torch.")]
        collectives.count += 1
        collectives.bytes += max(size(tensor) for tensor in found)

    # ---- waits of the host ----

    def _look_for_waits(self, name: str, args: Any, kwargs: Any) -> None:
        if name == "_to_copy" and kwargs.get("device") is not None:
            self._copy(args[0], torch.device(kwargs["device"]), kwargs.get("non_blocking", False))
        elif name == "copy_":
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            self._copy(args[1], args[0].device, not blocking)
        elif name.startswith(_WAITING_OPS) or (name.startswith("index") and _has_mask(args)):
            self.count.recorder.sync(name)

    def _copy(self, source: Tensor, device: torch.device, non_blocking: bool) -> None:
        """Record a copy between host and device that the host waits for."""
        if source.device.type == device.type:
            return
        way = "copy to host" if source.is_cuda else "copy to device"
        pinned = source.is_cuda or is_pinned(source)
        if not non_blocking:
            self.count.recorder.sync(way)
        elif not pinned:
            self.count.recorder.sync(f"{way} of pageable memory")


_counting: StepCounter | None = None


@contextmanager
def counted_instead(kernels: Iterable[Cost]) -> Iterator[None]:
    """Count these kernels, if a step is counted, and not the operations of the enclosed block."""
    counter = _counting
    if counter is None:
        yield
        return
    for kernel in kernels:
        counter.add(kernel, counter.parts.part)
    counter.is_muted = True
    try:
        yield
    finally:
        counter.is_muted = False


def _has_mask(args: Any) -> bool:
    return any(tensor.dtype == torch.bool for tensor in tensors(args[1]))


def _kind(name: str) -> str:
    """Return NCCL's name of a c10d operation."""
    known = {"allreduce": "all_reduce", "allgather": "all_gather", "reduce_scatter": "reduce_scatter"}
    bare = name.strip("_")
    return next((kind for start, kind in known.items() if bare.startswith(start)), bare)
