"""Heads on the feature map, for tasks with a label for each pixel. Parameter names of the published heads are theirs,
so that published heads can be loaded."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from finetune.heads.build import HeadShape
from finetune.heads.registry import HeadConfig
from pretrain.models.batchnorm import GroupedBatchNorm, by_groups


def build_conv(config: HeadConfig, shape: HeadShape) -> nn.Module:
    """Build SpectralEarth's segmentation head for ViTs."""
    return ConvHead(shape.features, shape.outputs, shape.stride, shape.bn_group)


def build_fcn(config: HeadConfig, shape: HeadShape) -> nn.Module:
    """Build SpectralEarth's segmentation head for ResNets."""
    return FcnHead(shape.features, shape.outputs, shape.stride, shape.bn_group)


def build_linear(config: HeadConfig, shape: HeadShape) -> nn.Module:
    """Build a linear probe: of each position of the feature map, or of pooled features."""
    if shape.is_dense:
        return DenseLinear(shape.features, shape.outputs, shape.stride)
    return nn.Linear(shape.features, shape.outputs)


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
                x = F.relu(normalize_map(self.segmentation_conv.get_submodule(str(4 * stage + 2)), x))
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
        x = last(F.relu(normalize_map(norm, first(x.to(cast(Tensor, first.weight).dtype)))))
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


def normalize_map(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a grouped batch norm to a map (B, D, h, w)."""
    return norm(x.flatten(2)).view_as(x)
