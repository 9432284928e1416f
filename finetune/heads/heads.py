"""Task heads. Parameter names of the published heads are theirs, so that published heads can be loaded."""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.tasks import Kind
from pretrain.models.batchnorm import GroupedBatchNorm, by_groups

HeadName = Literal["conv", "fcn", "linear", "mlp"]
HEADS: dict[Kind, tuple[HeadName, ...]] = {
    "segmentation": ("conv", "fcn", "linear"),
    "multilabel": ("linear", "mlp"),
    "regression": ("mlp", "linear"),
}
"""Heads of each kind of task."""

PUBLISHED: dict[Kind, tuple[HeadName, HeadName]] = {
    "segmentation": ("conv", "fcn"),
    "multilabel": ("linear", "linear"),
    "regression": ("mlp", "mlp"),
}
"""SpectralEarth's head of each kind of task: for a ViT, and for a ResNet."""


def build_head(
    name: HeadName, kind: Kind, features: int, outputs: int, stride: int, bn_group: int | None = None
) -> nn.Module:
    """A head on an encoder's feature map (segmentation) or pooled features.

    Args:
        features: D of the encoder.
        outputs: classes or targets.
        stride: pixels per side of a position of the feature map.
        bn_group: samples that share batch statistics in training; None for all of a batch.

    Raises:
        ValueError: a head that the kind of task doesn't have.
    """
    if name not in HEADS[kind]:
        raise ValueError(f"head '{name}' is none for {kind}: choose from {', '.join(HEADS[kind])}")
    if kind == "segmentation":
        if name == "conv":
            return ConvHead(features, outputs, stride, bn_group)
        return FcnHead(features, outputs, stride, bn_group) if name == "fcn" else DenseLinear(features, outputs, stride)
    return MlpHead(features, outputs, bn_group) if name == "mlp" else nn.Linear(features, outputs)


class ConvHead(nn.Module):
    """SpectralEarth's segmentation head for ViTs: one doubling of the resolution per factor 2 of the patch size.

    Each stage: bilinear x2, 3x3 convolution, and but for the last, batch norm and ReLU; widths 128, 64, ...

    Args:
        features: channels of the encoder's feature map.
        classes: number of classes.
        stride: pixels per side of a feature, a power of two above 1.
        bn_group: samples that share batch statistics.
    """

    def __init__(self, features: int, classes: int, stride: int, bn_group: int | None) -> None:
        super().__init__()
        stages = stride.bit_length() - 1
        if 2**stages != stride or stages == 0:
            raise ValueError(f"the head needs a feature stride of 2, 4, 8, ..., not {stride}")
        self.stages, self.bn_group = stages, bn_group
        self.segmentation_conv = nn.Module()  # the published Sequential: upsampling and ReLU take numbers too
        for stage in range(stages):
            last = stage == stages - 1
            width = classes if last else 128 >> stage
            self.segmentation_conv.add_module(str(4 * stage + 1), nn.Conv2d(features, width, 3, padding=1))
            if not last:
                self.segmentation_conv.add_module(str(4 * stage + 2), GroupedBatchNorm(width))
            features = width

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (B, D, g, g) to class scores (B, classes, g * stride, g * stride)."""
        return by_groups(self._scores, x, self.bn_group if self.training else None)

    def _scores(self, x: Tensor) -> Tensor:
        for stage in range(self.stages):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            convolution = cast(nn.Conv2d, self.segmentation_conv.get_submodule(str(4 * stage + 1)))
            x = convolution(x.to(convolution.weight.dtype))
            if stage < self.stages - 1:
                x = F.relu(_norm(self.segmentation_conv.get_submodule(str(4 * stage + 2)), x))
        return x


class FcnHead(nn.Module):
    """SpectralEarth's segmentation head for ResNets: 3x3 convolution to 256, batch norm, ReLU, 1x1 convolution, and
    bilinear to the image. ``classifier`` is the published Sequential."""

    def __init__(self, features: int, classes: int, stride: int, bn_group: int | None) -> None:
        super().__init__()
        self.stride, self.bn_group = stride, bn_group
        self.classifier = nn.Module()
        self.classifier.add_module("0", nn.Conv2d(features, 256, 3, padding=1, bias=False))
        self.classifier.add_module("1", GroupedBatchNorm(256))
        self.classifier.add_module("3", nn.Conv2d(256, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (B, D, g, g) to class scores (B, classes, g * stride, g * stride)."""
        return by_groups(self._scores, x, self.bn_group if self.training else None)

    def _scores(self, x: Tensor) -> Tensor:
        first, norm, last = (self.classifier.get_submodule(name) for name in ("0", "1", "3"))
        x = last(F.relu(_norm(norm, first(x.to(cast(Tensor, first.weight).dtype)))))
        return F.interpolate(x, scale_factor=self.stride, mode="bilinear", align_corners=False)


class DenseLinear(nn.Module):
    """Linear dense probe: classes from the features of each position, bilinear to the image."""

    def __init__(self, features: int, classes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Conv2d(features, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (B, D, g, g) to class scores (B, classes, g * stride, g * stride)."""
        scores = self.linear(x.to(self.linear.weight.dtype))
        return F.interpolate(scores, scale_factor=self.stride, mode="bilinear", align_corners=False)


class MlpHead(nn.Module):
    """SpectralEarth's regression head: batch norm, then D -> 2048 -> 1024 -> outputs with ReLU and dropout 0.2.

    The names are numbers, as in the published Sequential.
    """

    DROPOUT = 0.2

    def __init__(self, features: int, outputs: int, bn_group: int | None) -> None:
        super().__init__()
        self.bn_group = bn_group
        self.add_module("0", GroupedBatchNorm(features))
        for name, before, after in (("1", features, 2048), ("4", 2048, 1024), ("7", 1024, outputs)):
            self.add_module(name, nn.Linear(before, after))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (B, D) to outputs (B, K)."""
        x = by_groups(self.get_submodule("0"), x, self.bn_group if self.training else None)
        for name in ("1", "4"):
            layer = cast(nn.Linear, self.get_submodule(name))
            x = F.dropout(F.relu(layer(x.to(layer.weight.dtype))), self.DROPOUT, self.training)
        return self.get_submodule("7")(x)


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.flatten(2)).view_as(x)


# ---- losses and predictions ----


def summed_loss(kind: Kind, scores: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Loss added up over what counts, float32 scalar; divide by `count_labels` of the whole batch.

    Args:
        scores: (B, C, S, S), or (B, K).
        labels: class indices (B, S, S); multi-hot (B, C); or targets (B, K).
    """
    if kind == "segmentation":
        return F.cross_entropy(scores.float(), labels.long(), ignore_index=ignore_index, reduction="sum")
    if kind == "multilabel":
        return F.binary_cross_entropy_with_logits(scores.float(), labels.float(), reduction="sum")
    return F.mse_loss(scores.float(), labels.float(), reduction="sum")


def count_labels(kind: Kind, labels: Tensor, ignore_index: int) -> int:
    """Pixels, or outputs, that `summed_loss` adds up."""
    return int((labels != ignore_index).sum()) if kind == "segmentation" else labels.numel()


def predict(kind: Kind, scores: Tensor) -> Tensor:
    """From scores: classes (B, S, S); probabilities (B, C); or values (B, K)."""
    if kind == "segmentation":
        return scores.argmax(1)
    return torch.sigmoid(scores.float()) if kind == "multilabel" else scores.float()
