"""torch.compile of a model's units: whether it is used on a device, and how."""

import os
import shutil
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pretrain.console import log
from pretrain.models.activation_checkpointing import checkpointed_in_graph
from pretrain.models.unit import compilable_units
from shards.errors import ConfigError


def is_compiled(setting: bool | Literal["auto"], device: torch.device) -> bool:
    """Return whether an engine on a device compiles: under ``auto`` on GPUs where the compiler can run.

    Raises:
        ConfigError: ``setting`` is true, and the compiler can't run here.
    """
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return False
    problem = compiler_problem(device.type)
    if problem and setting is True:
        raise ConfigError(f"key 'engine.compile': {problem}, or write false")
    if problem:
        log(f"WARNING: engine.compile auto: nothing is compiled: {problem}")
    return problem is None


def compiler_problem(device_type: str) -> str | None:
    """Return what torch.compile lacks on this machine and how to get it, or None if it can run.

    On GPUs Triton builds its launcher in C; on CPUs inductor writes C++.
    """
    if device_type == "cuda" and find_spec("triton") is None:
        return "torch.compile needs Triton, which torch's CUDA wheels install with it"
    names = ("gcc", "clang", "cc") if device_type == "cuda" else ("g++", "clang++")
    variable = "CC" if device_type == "cuda" else "CXX"
    if not os.environ.get(variable) and not any(map(shutil.which, names)):
        return f"torch.compile needs a compiler ({', '.join(names)}): install one, or name it in ${variable}"
    if device_type == "cuda" and not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "torch.compile needs Python.h: install python3-dev or python3-devel"
    return None


def compile_units(model: nn.Module) -> None:
    """Compile the forwards of the units that allow it, in place, at their first call; names and weights stay.

    Hooks on the units are outside of the graphs, so that ZeRO-3 can gather weights in them; activation checkpointing
    is inside. Units of one class share their graphs, one for each size of input. Sizes are constant: a training step
    has the same ones every time.
    """
    for unit in compilable_units(model):
        unit.forward = torch.compile(checkpointed_in_graph(unit.forward, unit.activation_checkpointing), dynamic=False)
        unit.activation_checkpointing = "none"  # of `Unit.run`


def eager_units(enabled: bool) -> AbstractContextManager[None]:
    """Return a context in which compiled units run eagerly.

    Evaluations have batches of other sizes, and torch.compile gives up on a function after eight graphs.
    """
    return torch.compiler.set_stance("force_eager") if enabled else nullcontext()
