"""ZeRO-3 leaf modules: units whose weights are gathered together, by hooks on the unit and none on its parts.

A transformer block has eight parts with weights. Hooks on all of them cost more host time than the block's kernels at
small batches, and none can be in a graph of torch.compile.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.models.unit import compilable_units


def set_leaf_modules(model: nn.Module, set_leaf: Callable[[nn.Module, bool], None]) -> None:
    """Make the units that torch.compile can compile leaf modules, before DeepSpeed registers its hooks.

    Args:
        set_leaf: DeepSpeed's function.
    """
    for unit in compilable_units(model):
        set_leaf(unit, True)
        if any(parameter.requires_grad for parameter in unit.parameters()):
            unit.register_forward_pre_hook(_require_input_gradient)


def _require_input_gradient(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Let the first input require a gradient where none does, as behind frozen layers.

    DeepSpeed reduces a leaf module's gradients when those of its inputs are complete. Without any, torch calls that
    hook at the start of the module's backward pass, and DeepSpeed would reduce zeros.
    """
    first, *others = inputs
    if not torch.is_grad_enabled() or any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        return None
    return first.detach().requires_grad_(), *others
