"""AdamW with weight decay on matrices only."""

import torch
from torch import nn


def build_adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """Two groups: matrices and convolutions decay; norms, biases, and class, mask and position tokens don't."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_token = name.rsplit(".", 1)[-1] in ("cls_token", "mask_token", "pos_embed")
            (plain if parameter.dim() <= 1 or is_token else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas)
