"""Bodies that torch.compile may fuse: functions of tensors that hold no weights, and so have no hooks of ZeRO's."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, ParamSpec, TypeVar

import torch

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


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
