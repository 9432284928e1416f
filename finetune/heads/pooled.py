"""Heads on pooled features, for tasks with a label for each tile."""

from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from finetune.heads.build import HeadShape
from finetune.heads.registry import MlpHeadConfig
from pretrain.models.batchnorm import GroupedBatchNorm, by_groups


def build_mlp(config: MlpHeadConfig, shape: HeadShape) -> nn.Module:
    """Build SpectralEarth's regression head."""
    return MlpHead(shape.features, shape.outputs, shape.bn_group, config.hidden, config.dropout)


class MlpHead(nn.Module):
    """SpectralEarth's regression head: batch norm, then D -> 2048 -> 1024 -> outputs with ReLU and dropout 0.2.

    The names are numbers, as in the published Sequential: 1, 4, 7.

    Args:
        hidden: widths of the hidden layers.
        dropout: share of a hidden layer that training drops.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        bn_group: int | None,
        hidden: tuple[int, ...] = (2048, 1024),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.bn_group, self.dropout = bn_group, dropout
        self.names = [str(3 * layer + 1) for layer in range(len(hidden) + 1)]
        self.add_module("0", GroupedBatchNorm(features))
        for name, (before, after) in zip(self.names, pairwise((features, *hidden, outputs)), strict=True):
            self.add_module(name, nn.Linear(before, after))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (B, D) to outputs (B, K)."""
        x = by_groups(self.get_submodule("0"), x, self.bn_group if self.training else None)
        for name in self.names[:-1]:
            layer = cast(nn.Linear, self.get_submodule(name))
            x = F.dropout(F.relu(layer(x.to(layer.weight.dtype))), self.dropout, self.training)
        last = cast(nn.Linear, self.get_submodule(self.names[-1]))
        return last(x.to(last.weight.dtype))
