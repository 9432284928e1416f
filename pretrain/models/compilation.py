"""Element-wise functions that torch.compile can fuse, and whether a model is being exported.

The functions hold no weights, so ZeRO's hooks on modules don't interfere. They run compiled inside of `compiling`,
which engines enter for their forwards. A backward pass may run in another thread: an autograd function keeps
`is_compiling` in its forward and enters `compiling` in its backward.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")

_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


def is_exporting() -> bool:
    """Return whether the model is being recorded, by torch.export, torch.jit.trace or torch.onnx, without values."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def is_compiling() -> bool:
    """Return whether compilable functions run compiled here."""
    return _compiling.get()


@contextmanager
def compiling(enabled: bool = True) -> Generator[None, None, None]:
    """Run compilable functions compiled, or as they are written."""
    token = _compiling.set(enabled)
    try:
        yield
    finally:
        _compiling.reset(token)


def compilable(function: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """Decorate a function of tensors that runs compiled inside of `compiling`."""
    compiled: Callable[Inputs, Output] | None = None

    @wraps(function)
    def call(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        nonlocal compiled
        if not is_compiling() or torch.compiler.is_compiling():  # a compiled caller takes in the function as it is
            return function(*args, **kwargs)
        if compiled is None:  # not before: torch.compile loads the compiler, which takes seconds
            compiled = torch.compile(function, dynamic=True)
        return compiled(*args, **kwargs)

    return call
