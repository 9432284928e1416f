"""Optimizers: weight decay on matrices only, and a lower rate for lower layers where asked."""

import copy
import re
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.config.optim import OptimConfig
from pretrain.registries import OPTIMIZERS

LEVELS = 4
"""Layers share learning rates in this many steps: every parameter group costs ZeRO a round of collectives."""


def build_adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, fused=True)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of a pretraining run; its learning rate is set anew at each step."""
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
    """Find out what an optimizer keeps, by a step of a copy of it on a weight of its own."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones_like(weight)
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**optimizer.param_groups[0], "params": [weight]}]
    trial.step()
    kept = trial.state[weight]
    moments = (name for name, value in kept.items() if isinstance(value, Tensor) and value.shape == weight.shape)
    return OptimizerState(tuple(moments), "step" in kept)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Trained parameters by (decay, ``lr_scale``), at most 2 * (LEVELS + 1) groups.

    Matrices and convolutions decay; norms, biases, and class, mask and position tokens don't. A parameter's rate
    is ``layer_decay`` to the power of its distance from the top (arXiv 2003.10555), in LEVELS steps over the depth.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    depth = max((_layer(name) or 0 for name in names), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_token = name.rsplit(".", 1)[-1] in ("cls_token", "mask_token", "pos_embed")
            decay = 0.0 if parameter.dim() <= 1 or is_token else weight_decay
            groups[decay, _scale(name, depth, layer_decay)].append(parameter)
    order = sorted(groups, key=lambda group: (-group[1], -group[0]))
    return [{"params": groups[key], "weight_decay": key[0], "lr_scale": key[1]} for key in order]


def _scale(name: str, depth: int, layer_decay: float) -> float:
    layer = _layer(name)
    if layer_decay == 1.0 or layer is None:
        return 1.0
    level = layer * LEVELS // (depth + 1)
    members = [number for number in range(depth + 1) if number * LEVELS // (depth + 1) == level]
    return layer_decay ** (depth + 1 - sum(members) / len(members))


def _layer(name: str) -> int | None:
    """Layer of an encoder's parameter: 0 for stem and embedding, then blocks from 1; None for heads and decoders."""
    inside = re.search(r"(?:^|\.)encoder\.(.*)", name)
    if inside is None:
        return None
    block = re.search(r"(?:^|\.)(?:blocks\.(\d+)|layer(\d+))\.", inside[1])
    if block:
        return int(block[1]) + 1 if block[1] is not None else int(block[2])
    return None if re.search(r"(?:^|core\.)norm\.", inside[1]) else 0
