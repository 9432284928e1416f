"""Units: modules that engines treat as a whole."""

from typing import Any, ClassVar

from torch import nn

from pretrain.models.activation_checkpointing import Policy, checkpointed


class Unit(nn.Module):
    """A module of moderate size, such as a transformer block.

    Momentum networks gather the weights of a unit in one collective; activation checkpointing recomputes a unit at a
    time; torch.compile compiles those that allow it, and ZeRO-3 gathers their weights together.

    Attributes:
        compiles: whether torch.compile can compile its forward: it maps a tensor (and other inputs) to a tensor, with
            all of its own weights and no others, without side effects.
        activation_checkpointing: which of its activations are recomputed in the backward pass.
    """

    compiles: ClassVar[bool] = False
    activation_checkpointing: Policy = "none"

    def run(self, *inputs: Any) -> Any:
        """Call the unit, in training with activation checkpointing by its policy."""
        return checkpointed(self, self.activation_checkpointing if self.training else "none", *inputs)


def units(model: nn.Module) -> list[Unit]:
    """List the units of a model."""
    return [module for module in model.modules() if isinstance(module, Unit)]


def compilable_units(model: nn.Module) -> list[Unit]:
    """List the units of a model that torch.compile can compile."""
    return [unit for unit in units(model) if unit.compiles]


def set_activation_checkpointing(model: nn.Module, policy: Policy) -> None:
    """Set the policy of all units of a model."""
    for unit in units(model):
        unit.activation_checkpointing = policy
