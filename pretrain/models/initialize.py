"""First values of weights, each drawn from (seed, its own name): independent of order, ranks and ZeRO stage."""

import math

import torch
from torch import Tensor, nn

from shards.order.random_bits import fold_in


def initialize(module: nn.Module, name: str, seed: int) -> None:
    """Fill a model's parameters, each from (seed, its own name): independent of order, ranks and ZeRO stage.

    Truncated normal (std 0.02) for tokens, Xavier-uniform for linear weights, torch's default He-uniform for
    the adapter's convolutions, He-normal for a ResNet's (arXiv 1502.01852), ones and zeros for norms and biases.
    A module that needs other values has a method ``initialize_parameter(name, parameter, generator)`` for its own.
    """
    for parameter_name, parameter in module.named_parameters():
        full = f"{name}.{parameter_name}"
        generator = torch.Generator().manual_seed(fold_in(seed, full) % 2**63)
        owner_name, _, leaf = parameter_name.rpartition(".")
        initialize_parameter = getattr(module.get_submodule(owner_name), "initialize_parameter", None)
        with torch.no_grad():
            if initialize_parameter is None:
                _fill(full, parameter, generator)
            else:
                initialize_parameter(leaf, parameter, generator)


def _fill(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("cls_token", "mask_token", "pos_embed"):
        nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
    elif parameter.dim() == 1:
        last_of_block = ".bn3." in name  # a residual block starts as its shortcut (arXiv 1706.02677)
        parameter.fill_(1.0 if leaf == "weight" and not last_of_block else 0.0)
    elif parameter.dim() == 5:
        nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
    elif name.rsplit(".", 2)[-2].startswith("conv") or ".downsample." in name:
        nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu", generator=generator)
    else:
        fan_out, fan_in = parameter.shape[0], parameter[0].numel()
        bound = math.sqrt(6.0 / (fan_in + fan_out))  # as MAE initializes its linear layers
        parameter.uniform_(-bound, bound, generator=generator)
