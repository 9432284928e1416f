"""A head for a task, from its config."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.heads.registry import HEADS, HeadConfig, head_config, heads_for
from finetune.tasks.kinds.kind import LabelSummary, TaskKind
from pretrain.models.layer_maps import LayerShape


@dataclass(frozen=True)
class HeadShape:
    """What a head is built for.

    Attributes:
        features: D, channels of the encoder's features; of all folded maps for a head on ``layers``.
        outputs: K, classes or targets.
        stride: pixels per side of a position of the feature map.
        is_dense: whether the head gets a map (B, D, g, g) and gives (B, K, g * stride, g * stride); otherwise it gets
            pooled features (B, D) and gives (B, K).
        bn_group: samples that share batch statistics in training; None for all of a batch.
        layers: of a head on ``layers``, the shapes of their maps: `unfold_layers` gives them back.
    """

    features: int
    outputs: int
    stride: int
    is_dense: bool
    bn_group: int | None = None
    layers: tuple[LayerShape, ...] = ()


def build_head(
    config: HeadConfig | str,
    kind: TaskKind,
    features: int,
    stride: int,
    bn_group: int | None = None,
    layers: tuple[LayerShape, ...] = (),
) -> nn.Module:
    """Build a head for a task, on the CPU.

    Args:
        config: or the name of a head with its default options.
        features, stride, bn_group, layers: see `HeadShape`.

    Raises:
        ValueError: the head takes other features than the kind of task has.
    """
    chosen = head_config(config)
    known = heads_for(kind.features)
    if chosen.name not in known:
        choice = ", ".join(known)
        raise ValueError(f"head '{chosen.name}' is not a head for {kind.task.kind.name}: choose from {choice}")
    head = HEADS[chosen.name](chosen, HeadShape(features, kind.outputs, stride, kind.is_dense, bn_group, layers))
    return Standardized(head, kind.outputs) if kind.standardize else head


class Standardized(nn.Module):
    """A head that learns standardized targets and gives them in their unit: ``head(x) * std + mean``.

    Attributes:
        mean, std: of each target (T,), set by `fit_to_labels` and saved with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, head: nn.Module, targets: int) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", torch.zeros(targets))
        self.register_buffer("std", torch.ones(targets))

    def forward(self, x: Tensor) -> Tensor:
        """Features to values in the target's unit, float32 (B, T) or (B, T, S, S)."""
        values = self.head(x).float()
        shape = (-1, *(1,) * (values.dim() - 2))
        return values * self.std.float().view(shape) + self.mean.float().view(shape)


def fit_to_labels(head: nn.Module, labels: LabelSummary) -> None:
    """Give a head that standardizes targets the mean and standard deviation of the training labels."""
    if isinstance(head, Standardized):
        assert labels.mean is not None and labels.std is not None
        head.mean.copy_(torch.from_numpy(labels.mean))
        head.std.copy_(torch.from_numpy(labels.std))
