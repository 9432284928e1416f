"""Whole tensors from the pieces that ranks hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.engine.sharding import Piece


def gather(own: Mapping[str, Piece], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors of these shapes on every rank."""
    parts: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in shapes}
    for rank in distributed.gather_objects({name: (one.start, one.values.clone()) for name, one in own.items()}):
        for name in parts.keys() & rank.keys():
            parts[name].append(rank[name])
    ordered = {name: [values for _, values in sorted(found, key=lambda one: one[0])] for name, found in parts.items()}
    return {name: torch.cat(values).view(shapes[name]) for name, values in ordered.items()}
