"""LoRA (arXiv 2106.09685): frozen linear layers of attention, each with a trained update of low rank.

A layer computes W x + b + alpha / rank * B A x. A is drawn from the seed and B begins as zeros, so training begins with
what the encoder computes. The names of an encoder's own weights stay as they are, and `merge_updates` adds the products
to them, after which nothing distinguishes the encoder from one that was trained in full.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.initialize import initialize
from pretrain.models.transformer import Attention


class LowRankUpdate(nn.Module):
    """The update of a linear layer, ``scale * B A x``.

    Attributes:
        a, b: (rank, inputs) and (outputs, rank).
    """

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.a = nn.Parameter(torch.zeros(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.scale * F.linear(x, self.a), self.b)

    def initialize_parameter(self, leaf: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Draw A as the authors' code does, and set B to zeros."""
        if leaf == "a":
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
        else:
            parameter.zero_()


class LowRankLinear(nn.Linear):
    """A linear layer whose own weight and bias are frozen.

    Attributes:
        lora: the trained update.
    """

    def __init__(self, layer: nn.Linear, update: LowRankUpdate) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias, self.lora = layer.weight, layer.bias, update
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lora(x)


def has_attention(model: nn.Module) -> bool:
    """Return whether a model has layers for `add_updates`."""
    return any(isinstance(module, Attention) for module in model.modules())


def add_updates(model: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int) -> None:
    """Give layers of all attention modules a trained update, in place.

    Args:
        targets: names of layers in `Attention`, ``qkv`` and ``proj``.
        seed: seed of A; each layer draws from (seed, its own name).
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, Attention):
            for target in targets:
                layer = module.get_submodule(target)
                assert isinstance(layer, nn.Linear)
                update = LowRankUpdate(layer.in_features, layer.out_features, rank, alpha / rank)
                initialize(update, f"lora.{name}.{target}", seed)
                setattr(module, target, LowRankLinear(layer, update))


def merge_updates(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return weights by name with all updates added to the weights of their layers, in float64 and then rounded.

    Args:
        scale: alpha / rank.
    """
    merged = {name: tensor for name, tensor in weights.items() if not name.endswith((".lora.a", ".lora.b"))}
    for layer in [name.removesuffix(".lora.a") for name in weights if name.endswith(".lora.a")]:
        product = weights[f"{layer}.lora.b"].double() @ weights[f"{layer}.lora.a"].double()
        merged[f"{layer}.weight"] = (merged[f"{layer}.weight"].double() + scale * product).float()
    return merged
