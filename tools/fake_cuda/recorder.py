"""What a step asks of the device besides kernels: waits of the host, events and streams, with the place in the code."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
_HERE = str(Path(__file__).parent)
_SITE = "site-packages/"
_WRAPPERS = ("torch/", "deepspeed/accelerator/", "deepspeed/comm/", "deepspeed/utils/nvtx.py")


@dataclass(frozen=True)
class Place:
    """A line of the project or of a library that it uses.

    Attributes:
        file: relative to the checkout or to site-packages.
        function, line: within the file.
    """

    file: str
    function: str
    line: int

    @property
    def name(self) -> str:
        """The place without its line, which later edits move."""
        return f"{self.file}:{self.function}"


AUTOGRAD = Place("torch/autograd/graph.py", "_engine_run_backward", 0)
"""The caller of a backward pass's operations, but those of functions written in Python."""


@dataclass
class Recorder:
    """Counts of one step; only those of the thread that created it.

    Attributes:
        syncs: waits of the host for the device, by kind and place.
        calls: other calls of the CUDA runtime, by name.
    """

    syncs: Counter[tuple[str, Place]] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    _thread: int = field(default_factory=threading.get_ident)

    def sync(self, kind: str) -> None:
        """Record that the host waits for the device."""
        if threading.get_ident() == self._thread:
            self.syncs[kind, caller()] += 1

    def call(self, name: str) -> None:
        """Record a call that doesn't wait."""
        if threading.get_ident() == self._thread:
            self.calls[name] += 1


_recorder: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Let `sync` and `call` count in the enclosed block."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before


def sync(kind: str) -> None:
    """Record that the host waits for the device, if a step is recorded."""
    if _recorder is not None:
        _recorder.sync(kind)


def call(name: str) -> None:
    """Record a call that doesn't wait, if a step is recorded."""
    if _recorder is not None:
        _recorder.call(name)


def caller() -> Place:
    """Return the innermost place in the project or in a library other than torch, or AUTOGRAD."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == AUTOGRAD.function:
            return AUTOGRAD
        file = file_name(code.co_filename)
        if file is not None:
            return Place(file, code.co_qualname.partition(".<locals>")[0], frame.f_lineno)
        frame = frame.f_back
    return Place("?", "?", 0)


@cache
def file_name(path: str) -> str | None:
    """Return a file's name relative to the checkout or site-packages; None for Python, torch, wrappers and us."""
    if _SITE in path:
        name = path.rpartition(_SITE)[2]
        return None if name.startswith(_WRAPPERS) else name
    own = path.startswith(f"{ROOT}/") and not path.startswith(_HERE)
    return path.removeprefix(f"{ROOT}/") if own else None
