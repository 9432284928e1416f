"""Functions of tensors that torch.compile can fuse: they hold no weights, and so have no hooks of ZeRO's; exports."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, ParamSpec, TypeVar

import torch

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


def is_exporting() -> bool:
    """Whether the model is being recorded, by torch.export, torch.jit.trace or torch.onnx: values are unknown then."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


class Body(Generic[Inputs, Output]):
    """A function that runs as it is written, or compiled once that is switched on for the process.

    Attributes:
        compiles: whether bodies are compiled.
    """

    compiles = False

    def __init__(self, function: Callable[Inputs, Output]) -> None:
        self._plain = function
        self._compiled: Callable[Inputs, Output] = torch.compile(function, dynamic=True)
        update_wrapper(self, function)

    def __call__(self, *args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        function = self._compiled if Body.compiles else self._plain
        return function(*args, **kwargs)
