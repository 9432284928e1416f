"""Optimizers: weight decay on matrices only, and a lower rate for lower layers where asked."""

import copy
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.config.optim import OptimConfig
from pretrain.models.encoder import Encoder
from pretrain.registries import OPTIMIZERS

LEVELS = 4
"""Layers share learning rates in this many steps: every parameter group costs ZeRO a round of collectives."""


def build_adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """Build AdamW over `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, fused=True)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer of a training; its learning rate is set at each step."""
    return OPTIMIZERS[config.name](parameter_groups(model, config.weight_decay, config.layer_decay), config)


def adamw(groups: list[dict], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), fused: one pass over the states."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def sgd(groups: list[dict], config: OptimConfig) -> torch.optim.SGD:
    """SGD with momentum ``betas[0]``."""
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0])


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer keeps for each weight.

    Attributes:
        moments: names of its tensors that have the weight's shape.
        counts_steps: whether it counts updates under ``step``.
    """

    moments: tuple[str, ...]
    counts_steps: bool


def optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Find out which state an optimizer keeps, by a step of a copy on a separate weight."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones_like(weight)
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**optimizer.param_groups[0], "params": [weight]}]
    trial.step()
    state = trial.state[weight]
    moments = (name for name, value in state.items() if isinstance(value, Tensor) and value.shape == weight.shape)
    return OptimizerState(tuple(moments), "step" in state)


def group_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names of the parameters in each group of an optimizer."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Group trained parameters by (decay, ``lr_scale``) into at most 2 * (LEVELS + 1) groups.

    Matrices and convolutions decay; norms, biases, and what modules list as ``no_weight_decay`` (tokens, positions)
    don't. A rate is scaled by ``layer_decay`` to the power of the layer's distance from the top of its encoder (arXiv
    2003.10555; `Encoder.parameter_layers`), in LEVELS steps over the depth.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spared = {
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name in getattr(module, "no_weight_decay", ())
    }
    scales = _layer_scales(model, layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for parameter in trained:
        decay = 0.0 if parameter.dim() <= 1 or parameter in spared else weight_decay
        groups[decay, scales.get(parameter, 1.0)].append(parameter)
    order = sorted(groups, key=lambda group: (-group[1], -group[0]))
    return [{"params": groups[key], "weight_decay": key[0], "lr_scale": key[1]} for key in order]


def _layer_scales(model: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    """Return the factor of the learning rate of each parameter in a layer of an encoder."""
    scales: dict[nn.Parameter, float] = {}
    if layer_decay == 1.0:
        return scales
    for encoder in (module for module in model.modules() if isinstance(module, Encoder)):
        layers = encoder.parameter_layers()
        depth = max((number for number, layer in enumerate(layers) if any(p.requires_grad for p in layer)), default=0)
        for number, layer in enumerate(layers[: depth + 1]):
            level = number * LEVELS // (depth + 1)
            members = [number for number in range(depth + 1) if number * LEVELS // (depth + 1) == level]
            scale = layer_decay ** (depth + 1 - sum(members) / len(members))
            scales |= dict.fromkeys(layer, scale)
    return scales
