"""Task heads. Parameter names are the published ones, so that published heads can be loaded."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.batchnorm import GroupedBatchNorm, by_groups
from pretrain.models.encoder import Encoder


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
                norm = self.segmentation_conv.get_submodule(str(4 * stage + 2))
                x = F.relu(norm(x.flatten(2)).view_as(x))
        return x


class SegmentationModel(nn.Module):
    """Encoder and head, with the loss: cross-entropy summed over counted pixels."""

    def __init__(self, encoder: Encoder, head: ConvHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, S, S), labels (B, S, S) to (summed loss, scores (B, classes, S, S))."""
        scores = self.head(self.encoder.dense_features(images)).float()
        return segmentation_loss(scores, labels, ignore_index), scores


def segmentation_loss(scores: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy summed over the pixels that count, float32 scalar."""
    return F.cross_entropy(scores.float(), labels, ignore_index=ignore_index, reduction="sum")


def predict_classes(scores: Tensor) -> Tensor:
    """Most likely class per pixel, int64 (B, S, S)."""
    return torch.argmax(scores, 1)
