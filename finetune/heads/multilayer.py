"""Heads on the maps of several layers, for tasks with a label for each pixel."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.heads.build import HeadShape
from finetune.heads.dense import normalize_map
from finetune.heads.registry import DecoderConfig
from pretrain.models.batchnorm import GroupedBatchNorm, by_groups
from pretrain.models.layer_maps import LayerShape, unfold_layers

BINS = (1, 2, 3, 6)
"""Sides of the grids that pyramid pooling averages a map over."""


def build_upernet(config: DecoderConfig, shape: HeadShape) -> nn.Module:
    """Build UPerNet."""
    return UperHead(shape.layers, shape.outputs, shape.stride, shape.bn_group, config.hidden)


def build_fcn_layers(config: DecoderConfig, shape: HeadShape) -> nn.Module:
    """Build a fully convolutional head on concatenated layers."""
    return LayersFcnHead(shape.layers, shape.outputs, shape.stride, shape.bn_group, config.hidden)


class LayersHead(nn.Module, ABC):
    """Base of heads on folded maps of several layers, in training group by group.

    Args:
        layers: shapes of the maps, from the lowest layer.
        stride: pixels per side of a position of the folded maps.
        bn_group: samples that share batch statistics.
        hidden: channels in front of ``classifier``.
    """

    def __init__(
        self, layers: Sequence[LayerShape], classes: int, stride: int, bn_group: int | None, hidden: int
    ) -> None:
        super().__init__()
        self.layers, self.stride, self.bn_group = tuple(layers), stride, bn_group
        self.classifier = nn.Conv2d(hidden, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Folded maps (B, D, g, g) to class scores (B, classes, g * stride, g * stride)."""
        return by_groups(self._scores, x.to(self.classifier.weight.dtype), self.bn_group if self.training else None)

    def _scores(self, x: Tensor) -> Tensor:
        scores = self.classifier(self._decoded(unfold_layers(x, self.layers)))
        return _resize(scores, self.stride * x.shape[2], self.stride * x.shape[3])

    @abstractmethod
    def _decoded(self, maps: list[Tensor]) -> Tensor:
        """Combine the maps of the layers to one (B, hidden, h, w)."""


class LayersFcnHead(LayersHead):
    """FCN on several layers: their maps, bilinear at the finest grid and concatenated, 3x3 convolution, batch norm,
    ReLU, 1x1 convolution, and bilinear to the image."""

    def __init__(
        self, layers: Sequence[LayerShape], classes: int, stride: int, bn_group: int | None, hidden: int
    ) -> None:
        super().__init__(layers, classes, stride, bn_group, hidden)
        self.fuse = ConvNormRelu(sum(layer.width for layer in layers), hidden, 3)

    def _decoded(self, maps: list[Tensor]) -> Tensor:
        return self.fuse(_concatenated(maps))


class UperHead(LayersHead):
    """UPerNet (arXiv 1807.10221): pyramid pooling of the last map, a feature pyramid over all, and their fusion.

    If all maps have the same stride, as in a ViT, they are first brought to 4, 2, 1 and 1/2 times their resolution, as
    in BEiT (arXiv 2106.08254), but for resolutions beyond that of the image. Transposed convolutions give ``hidden``
    channels at once, where BEiT keeps the encoder's width; there is no auxiliary head and no dropout.
    """

    def __init__(
        self, layers: Sequence[LayerShape], classes: int, stride: int, bn_group: int | None, hidden: int
    ) -> None:
        super().__init__(layers, classes, stride, bn_group, hidden)
        self.rescale, widths = nn.ModuleList(), []
        for layer, factor in zip(layers, _factors(layers), strict=True):
            doublings = round(math.log2(factor)) if factor > 1 else 0
            steps = [Doubling(layer.width if step == 0 else hidden, hidden) for step in range(doublings)]
            self.rescale.append(nn.Sequential(*steps) if factor >= 1 else nn.MaxPool2d(2, ceil_mode=True))
            widths.append(hidden if doublings else layer.width)
        self.pooled = nn.ModuleList(ConvNormRelu(widths[-1], hidden, 1) for _ in BINS)
        self.top = ConvNormRelu(widths[-1] + len(BINS) * hidden, hidden, 3)
        self.lateral = nn.ModuleList(ConvNormRelu(width, hidden, 1) for width in widths[:-1])
        self.smooth = nn.ModuleList(ConvNormRelu(hidden, hidden, 3) for _ in widths[:-1])
        self.fuse = ConvNormRelu(len(widths) * hidden, hidden, 3)

    def _decoded(self, maps: list[Tensor]) -> Tensor:
        scaled = [rescale(layer) for rescale, layer in zip(self.rescale, maps, strict=True)]
        summed = [self._pool(scaled[-1])]
        for lateral, layer in zip(reversed(self.lateral), reversed(scaled[:-1]), strict=True):
            summed.insert(0, lateral(layer) + _resize(summed[0], *layer.shape[2:]))
        smoothed = [smooth(layer) for smooth, layer in zip(self.smooth, summed[:-1], strict=True)]
        return self.fuse(_concatenated([*smoothed, summed[-1]]))

    def _pool(self, x: Tensor) -> Tensor:
        """Concatenate a map with its means over grids of several sizes, and convolve them."""
        means = [convolve(F.adaptive_avg_pool2d(x, bins)) for convolve, bins in zip(self.pooled, BINS, strict=True)]
        return self.top(torch.cat([x, *(_resize(mean, *x.shape[2:]) for mean in means)], 1))


class ConvNormRelu(nn.Module):
    """Convolution without bias, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = GroupedBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(normalize_map(self.norm, self.conv(x)))


class Doubling(nn.Module):
    """Transposed convolution to twice the resolution, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)
        self.norm = GroupedBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(normalize_map(self.norm, self.conv(x)))


def _factors(layers: Sequence[LayerShape]) -> list[float]:
    """Return the factor on the resolution of each map."""
    stride = layers[-1].stride
    if len(layers) == 1 or len({layer.stride for layer in layers}) > 1:
        return [1.0] * len(layers)
    above = len(layers) // 2  # maps of a higher resolution
    powers = [above - number for number in range(len(layers))]
    return [float(math.gcd(2**power, stride)) if power >= 0 else 0.5 for power in powers]


def _concatenated(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate maps at the grid of the first, the finest."""
    return torch.cat([_resize(each, *maps[0].shape[2:]) for each in maps], 1)


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
