"""Residual networks: Spec. ResNet-50 of SpectralEarth, and the plain ResNet-50 it is compared with.

Spec. ResNet-50 is the spectral adapter at full resolution, then the layers of a ResNet-50 (He et al., arXiv
1512.03385; stride in the 3x3 convolution) without stem and pooling. The first block of layer1 is SpectralEarth's
own: 256 channels wide throughout, stride 2, no expansion. Overall stride 16: 128x128 pixels become 8x8 positions
of 2048 features. Parameter names and shapes are the published ones.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.activation_checkpointing import Recompute, recomputed
from pretrain.models.adapter import SpectralAdapter
from pretrain.models.batchnorm import GroupedBatchNorm, by_groups
from pretrain.models.encoder import Encoder, Output, layer_numbers
from pretrain.models.stem import Stem

FEATURES = 2048
NO_DILATION = (False, False, False, False)
LAYERS = ((256, 64, 3), (512, 128, 4), (1024, 256, 6), (FEATURES, 512, 3))  # out, width, blocks


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with batch norms around a shortcut.

    Args:
        inputs, width, outputs: channels before, within and after.
        stride, dilation: of the 3x3 convolution.
    """

    def __init__(self, inputs: int, width: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = GroupedBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = GroupedBatchNorm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = GroupedBatchNorm(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, GroupedBatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNetLayers(nn.Module):
    """The four layers of bottlenecks, behind a stem's features or, in the plain network, ResNet-50's own stem.

    Args:
        channels: of the input, in front of SpectralEarth's first block and stride, or the bands of the plain network.
        plain: begin as ResNet-50 does.
        dilate: for each layer, whether a dilation takes the place of its stride.
        bn_group: samples that share batch-norm statistics.

    Attributes:
        recompute: which of the blocks' activations are dropped in training, and computed again in the backward pass.
    """

    def __init__(self, channels: int, plain: bool, dilate: Sequence[bool], bn_group: int | None) -> None:
        super().__init__()
        self.bn_group = bn_group
        self.recompute: Recompute = False
        if plain:
            self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
            self.bn1 = GroupedBatchNorm(64)
        inputs, dilation = (64 if plain else channels), 1
        for number, ((outputs, width, blocks), dilated) in enumerate(zip(LAYERS, dilate, strict=True)):
            stride = 1 if dilated or (number == 0 and plain) else 2
            dilation *= 2 if dilated and number else 1  # the published option counts 1, 2, 4, 8
            first = outputs if number == 0 and not plain else width  # layer1.0 is as wide as its output
            layer = [Bottleneck(inputs, first, outputs, stride, dilation)]
            layer += [Bottleneck(outputs, width, outputs, 1, dilation) for _ in range(blocks - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*layer))
            inputs = outputs

    def layers(self, x: Tensor) -> list[Tensor]:
        """The output of each of the four layers."""
        outputs = []
        for number in range(len(LAYERS)):
            for block in cast(nn.Sequential, self.get_submodule(f"layer{number + 1}")):
                x = recomputed(block, self.training and self.recompute, x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor, take: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """(B, channels, H, W) to (B, FEATURES, h, w), or the outputs of the layers in ``take``."""
        if take is not None:
            outputs = self.layers(x)
            return [outputs[number] for number in take]
        return by_groups(lambda part: self.layers(part)[-1], x, self.bn_group if self.training else None)


class ResNetEncoder(Encoder):
    """The encoder's interface on top of ResNetLayers; pooled features are the mean over the map."""

    feature_dim = FEATURES

    @abstractmethod
    def _map(self, images: Tensor, take: list[int] | None = None) -> Tensor | list[Tensor]:
        """The last layer's map, or those of the layers in ``take``."""

    def forward(self, images: Tensor | Sequence[Tensor], output: Output = "pooled") -> Tensor:
        if output == "map":
            return cast(Tensor, self._map(cast(Tensor, images)))
        sizes = [images] if isinstance(images, Tensor) else images
        return torch.cat([cast(Tensor, self._map(one)).mean((2, 3)) for one in sizes])

    def _layers(self, images: Tensor, n: int | Sequence[int], norm: bool) -> list[tuple[Tensor, Tensor | None]]:
        return [(one, None) for one in self._map(images, layer_numbers(n, len(LAYERS)))]


class SpecResNet(ResNetEncoder):
    """Adapter and layers under their published names.

    Args:
        dilate: see ResNetLayers; all four give a map of the image's resolution.
        bn_group: samples that share batch-norm statistics.
        stem: in front of the layers; None for the spectral adapter. Its name is ``spectral_adapter`` in any case.
    """

    def __init__(
        self, dilate: Sequence[bool] = NO_DILATION, bn_group: int | None = None, stem: Stem | None = None
    ) -> None:
        super().__init__()
        self.stride = 16 >> sum(dilate)
        self.spectral_adapter = SpectralAdapter(bn_group) if stem is None else stem
        self.bands, self.min_bands = self.spectral_adapter.bands, self.spectral_adapter.min_bands
        self.resnet = ResNetLayers(self.spectral_adapter.channels, False, dilate, bn_group)

    def _map(self, images: Tensor, take: list[int] | None = None) -> Tensor | list[Tensor]:
        batch, _, height, width = images.shape
        pixels = images.flatten(2).transpose(1, 2)  # (B, H*W, C)
        features = self.spectral_adapter(pixels).transpose(1, 2).reshape(batch, -1, height, width)
        return self.resnet(features, take)


class PlainResNet(ResNetEncoder, ResNetLayers):  # type: ignore[misc]  # its forward is the encoder's
    """ResNet-50 on the bands themselves: 7x7 stem, max pooling, overall stride 32. The published baseline.

    Args:
        bands: C.
        bn_group: samples that share batch-norm statistics.
    """

    def __init__(self, bands: int, bn_group: int | None = None) -> None:
        ResNetLayers.__init__(self, bands, True, NO_DILATION, bn_group)
        self.stride, self.bands = 32, bands

    def _map(self, images: Tensor, take: list[int] | None = None) -> Tensor | list[Tensor]:
        if take is not None:
            outputs = self._stem_and_layers(images)
            return [outputs[number] for number in take]
        return by_groups(lambda part: self._stem_and_layers(part)[-1], images, self.bn_group if self.training else None)

    def _stem_and_layers(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(images.to(self.conv1.weight.dtype))))
        return self.layers(F.max_pool2d(x, 3, 2, padding=1))
