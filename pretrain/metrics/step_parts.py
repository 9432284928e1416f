"""Where the time of training steps goes: reading, stem, encoder, decoder or head, momentum network, optimizer, rest.

A step is a row of marks, each the beginning of a part. Going forward, hooks on the modules set them; coming back, the
backward pass of a module begins when the gradient of its output is there. On a GPU marks are events on the stream that
the work is queued on, read at log steps alone, so that no step waits for the device. Waits for other ranks lie inside
the parts they hold up.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

PARTS = {
    "spectral_adapter": "stem",
    "encoder": "encoder",
    "decoder": "decoder",
    "projection_head": "head",
    "head": "head",
}
"""Parts by the names of modules."""

MARKS = 20_000
"""Marks between two looks at most: a GPU's events are not free. What follows them is left out of the shares."""

Mark = tuple[str | None, "float | torch.cuda.Event"]


class StepParts:
    """Watches training steps of a module; evaluations are not counted.

    Args:
        module: what the engine trains, hooks on its forward already in place.
        momentum: the network that follows it, if there is one.
        device: that the module is on.
    """

    def __init__(self, module: nn.Module, momentum: nn.Module | None, device: torch.device) -> None:
        self._device = device
        self._marks: list[Mark] = []
        self._now: str | None = None
        self._outer: list[str | None] = []
        for name, part in module.named_modules():
            named = PARTS.get(name.rsplit(".", 1)[-1])
            if named is not None:
                self._watch(part, named)
        if momentum is not None:
            self._watch(momentum, "momentum")

    @contextmanager
    def step(self) -> Iterator[None]:
        """What it encloses is a step; time in between counts for nothing."""
        self.mark("other")
        try:
            yield
        finally:
            self.mark(None)
            self._outer.clear()

    def mark(self, part: str | None) -> None:
        """A part begins here; None: nothing does."""
        self._now = part
        if len(self._marks) < MARKS:
            self._marks.append((part, self._time()))

    def shares(self) -> dict[str, float]:
        """Part of the step time of each part since the last look, adding up to 1; empty where there was no step.

        On a GPU it waits for the device.
        """
        marks, self._marks = self._marks, []
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for (part, begin), (_, end) in pairwise(marks):
            if part is not None:
                seconds[part] = seconds.get(part, 0.0) + _between(begin, end)
        total = sum(seconds.values())
        return {part: value / total for part, value in seconds.items()} if total else {}

    def _time(self) -> "float | torch.cuda.Event":
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _watch(self, module: nn.Module, part: str) -> None:
        def begin(*_: Any) -> None:
            if self._now is not None:
                self._outer.append(self._now)
                self.mark(part)

        def end(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._outer:
                self.mark(self._outer.pop())
                for tensor in _tensors(output):
                    tensor.register_hook(lambda _gradient: self.mark(part))

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)


def _tensors(output: Any) -> list[Tensor]:
    outputs = output if isinstance(output, list | tuple) else [output]
    return [one for one in outputs if isinstance(one, Tensor) and one.requires_grad]


def _between(begin: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(begin, float) or isinstance(end, float):
        assert isinstance(begin, float) and isinstance(end, float)
        return end - begin
    return begin.elapsed_time(end) / 1000
