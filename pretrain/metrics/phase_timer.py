"""Time of training steps by phase: data, stem, encoder, decoder or head, momentum network, optimizer, other.

A step is recorded as a list of marks, each of which starts a phase. In the forward pass, hooks on the modules set the
marks; in the backward pass, a module's phase starts when the gradient of its output arrives. On a GPU, marks are CUDA
events, which are read at log steps only, so that no step waits for the device. Time spent waiting for other ranks
counts toward the phase that waits.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

PHASES = {
    "spectral_adapter": "stem",
    "encoder": "encoder",
    "decoder": "decoder",
    "projection_head": "head",
    "head": "head",
}
"""Phase of each module name."""

MAX_MARKS = 20_000
"""Maximum number of marks between two reads, to bound the number of CUDA events; later steps are not counted."""

Mark = tuple[str | None, "float | torch.cuda.Event"]


class PhaseTimer:
    """Times the phases of a module's training steps; evaluations are not counted.

    Args:
        module: module that the engine trains, with its forward hooks in place.
        momentum: the momentum network, if there is one.
        device: device of the module.
    """

    def __init__(self, module: nn.Module, momentum: nn.Module | None, device: torch.device) -> None:
        self._device = device
        self._marks: list[Mark] = []
        self._now: str | None = None
        self._outer: list[str | None] = []
        for name, part in module.named_modules():
            phase = PHASES.get(name.rsplit(".", 1)[-1])
            if phase is not None:
                self._watch(part, phase)
        if momentum is not None:
            self._watch(momentum, "momentum")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time the enclosed step."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def start(self) -> None:
        """Start a step."""
        self.mark("other")

    def stop(self) -> None:
        """End a step; time until the next step is not counted."""
        self.mark(None)
        self._outer.clear()

    def mark(self, phase: str | None) -> None:
        """Start a phase; None ends the current phase."""
        self._now = phase
        if len(self._marks) < MAX_MARKS:
            self._marks.append((phase, self._time()))

    def shares(self) -> dict[str, float]:
        """Return each phase's share of the step time since the last call; empty if there were no steps.

        Shares sum to 1. On a GPU this waits for the device.
        """
        marks, self._marks = self._marks, []
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for (phase, begin), (_, end) in pairwise(marks):
            if phase is not None:
                seconds[phase] = seconds.get(phase, 0.0) + _between(begin, end)
        total = sum(seconds.values())
        return {phase: value / total for phase, value in seconds.items()} if total else {}

    def _time(self) -> "float | torch.cuda.Event":
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _watch(self, module: nn.Module, phase: str) -> None:
        def begin(*_: Any) -> None:
            if self._now is not None:
                self._outer.append(self._now)
                self.mark(phase)

        def end(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._outer:
                self.mark(self._outer.pop())
                for tensor in _tensors(output):
                    tensor.register_hook(lambda _gradient: self.mark(phase))

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)


def _tensors(output: Any) -> list[Tensor]:
    outputs = output if isinstance(output, list | tuple) else [output]
    return [output for output in outputs if isinstance(output, Tensor) and output.requires_grad]


def _between(begin: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(begin, float) or isinstance(end, float):
        assert isinstance(begin, float) and isinstance(end, float)
        return end - begin
    return begin.elapsed_time(end) / 1000
