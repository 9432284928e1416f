"""Residual networks: Spec. ResNet-50 of SpectralEarth, and the plain ResNet-50 it is compared with.

Spec. ResNet-50 is the spectral adapter at full resolution, then the layers of a ResNet-50 (He et al., arXiv
1512.03385; stride in the 3x3 convolution) without stem and pooling. The first block of layer1 is SpectralEarth's
own: 256 channels wide throughout, stride 2, no expansion. Overall stride 16: 128x128 pixels become 8x8 positions
of 2048 features. Parameter names and shapes are the published ones.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.adapter import SpectralAdapter
from pretrain.models.batchnorm import GroupedBatchNorm, by_groups, num_groups
from pretrain.models.encoder import Encoder, layer_numbers
from pretrain.models.flops import Parts, times
from pretrain.models.layer_maps import LayerShape
from pretrain.models.spectrum import Spectra, Spectrum, each_spectrum
from pretrain.models.stem import Stem
from pretrain.models.unit import Unit

FEATURES = 2048
NO_DILATION = (False, False, False, False)
LAYERS = ((256, 64, 3), (512, 128, 4), (1024, 256, 6), (FEATURES, 512, 3))  # out, width, blocks


class Bottleneck(Unit):
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

    def flops(self, side: int) -> tuple[int, int]:
        """Operations on a map of this side, and the side of the output."""
        after = -(-side // self.conv2.stride[0])
        operations = side**2 * self.conv1.weight.numel()
        operations += after**2 * (self.conv2.weight.numel() + self.conv3.weight.numel())
        if self.downsample is not None:
            operations += after**2 * cast(nn.Conv2d, self.downsample[0]).weight.numel()
        return 2 * operations, after


class ResNetLayers(nn.Module):
    """The four layers of bottlenecks, behind a stem's features or, in the plain network, ResNet-50's own stem.

    Args:
        channels: of the input, in front of SpectralEarth's first block and stride, or the bands of the plain network.
        plain: begin as ResNet-50 does.
        dilate: for each layer, whether a dilation takes the place of its stride.
        bn_group: samples that share batch-norm statistics.
    """

    def __init__(self, channels: int, plain: bool, dilate: Sequence[bool], bn_group: int | None) -> None:
        super().__init__()
        self.bn_group = bn_group
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
        """Compute the output of each of the four layers."""
        outputs = []
        for layer in self.blocks():
            for block in layer:
                x = block.run(x)
            outputs.append(x)
        return outputs

    def blocks(self) -> list[list[Bottleneck]]:
        """List the blocks of each layer."""
        names = [f"layer{number + 1}" for number in range(len(LAYERS))]
        return [cast(list[Bottleneck], list(self.get_submodule(name).children())) for name in names]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, FEATURES, h, w)."""
        return by_groups(lambda part: self.layers(part)[-1], x, self.bn_group if self.training else None)

    def layer_flops(self, side: int) -> int:
        """Operations of the four layers on a map of this side."""
        total = 0
        for block in (block for layer in self.blocks() for block in layer):
            operations, side = block.flops(side)
            total += operations
        return total


class ResNetEncoder(Encoder):
    """The encoder's interface on top of ResNetLayers; pooled features are the mean over the map.

    Attributes:
        core: the four layers.
    """

    feature_dim = FEATURES

    @property
    @abstractmethod
    def core(self) -> ResNetLayers: ...

    @abstractmethod
    def _map(self, images: Tensor, spectrum: Spectrum | None = None) -> Tensor: ...

    @abstractmethod
    def _layer_maps(self, images: Tensor, spectrum: Spectrum | None = None) -> list[Tensor]:
        """Compute the maps of the four layers."""

    @abstractmethod
    def _stem_parameters(self) -> list[nn.Parameter]:
        """List the parameters below the four layers."""

    @property
    def _bn_group(self) -> int | None:
        return self.core.bn_group if self.training else None

    def _pooled(self, images: Tensor | Sequence[Tensor], spectra: Spectra = None) -> Tensor:
        sizes = [images] if isinstance(images, Tensor) else images
        pairs = zip(sizes, each_spectrum(spectra, len(sizes)), strict=True)
        return torch.cat([self._map(batch, spectrum).mean((2, 3)) for batch, spectrum in pairs])

    def _layer_outputs(
        self, images: Tensor, n: int | Sequence[int], norm: bool, *spectrum: Spectrum
    ) -> list[tuple[Tensor, Tensor | None]]:
        maps = self._layer_maps(images, *spectrum)
        return [(maps[number], None) for number in layer_numbers(n, len(LAYERS))]

    def layer_shapes(self) -> list[LayerShape]:
        shapes, stride = [], self.stride
        for layer in reversed(self.core.blocks()):
            shapes.append(LayerShape(layer[0].conv3.out_channels, stride))
            stride //= layer[0].conv2.stride[0]
        return shapes[::-1]

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        layers = [[p for block in layer for p in block.parameters()] for layer in self.core.blocks()]
        return [self._stem_parameters(), *layers]


def _each_by_groups(layers: Callable[[Tensor], list[Tensor]], x: Tensor, group: int | None) -> list[Tensor]:
    """Run ``layers`` on each group of samples as `by_groups` does, and return each of their outputs for all samples."""
    groups = num_groups(x, group)
    if groups == 1:
        return layers(x)
    return [torch.cat(maps) for maps in zip(*(layers(part) for part in x.chunk(groups)), strict=True)]


class SpecResNet(ResNetEncoder):
    """Adapter and layers under their published names.

    Args:
        dilate: see ResNetLayers; all four give a map of the image's resolution.
        bn_group: samples that share batch-norm statistics.
        stem: in front of the layers; None for the spectral adapter. Its name is ``spectral_adapter`` in any case.
    """

    dense_dilation = (True, True, True, True)

    def __init__(
        self, dilate: Sequence[bool] = NO_DILATION, bn_group: int | None = None, stem: Stem | None = None
    ) -> None:
        super().__init__()
        self.stride = 16 >> sum(dilate)
        self.spectral_adapter = SpectralAdapter(bn_group) if stem is None else stem
        self.bands, self.min_bands = self.spectral_adapter.bands, self.spectral_adapter.min_bands
        self.by_wavelength = self.spectral_adapter.by_wavelength
        self.resnet = ResNetLayers(self.spectral_adapter.channels, False, dilate, bn_group)

    @property
    def core(self) -> ResNetLayers:
        return self.resnet

    def _map(self, images: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        return self.resnet(self._features(images, spectrum))

    def _layer_maps(self, images: Tensor, spectrum: Spectrum | None = None) -> list[Tensor]:
        return _each_by_groups(self.resnet.layers, self._features(images, spectrum), self._bn_group)

    def _features(self, images: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        batch, _, height, width = images.shape
        pixels = images.flatten(2).transpose(1, 2)  # (B, H*W, C)
        stem = self.spectral_adapter
        features = stem(pixels, spectrum) if stem.by_wavelength else stem(pixels)
        return features.transpose(1, 2).reshape(batch, -1, height, width)

    def _stem_parameters(self) -> list[nn.Parameter]:
        return list(self.spectral_adapter.parameters())

    def flops(self, bands: int, image_size: int, visible: int | None = None) -> Parts:
        stem = image_size**2 * self.spectral_adapter.flops(bands)
        return {"stem": stem, "layers": self.resnet.layer_flops(image_size)}

    def training_flops(self, bands: int, image_size: int, visible: int | None = None) -> Parts:
        stem = image_size**2 * self.spectral_adapter.training_flops(bands)
        return times(3, self.flops(bands, image_size)) | {"stem": stem}

    def recomputed_flops(
        self, bands: int, image_size: int, visible: int | None = None, checkpointing: bool = False
    ) -> int:
        stem = image_size**2 * self.spectral_adapter.recomputed_flops(bands, checkpointing)
        return stem + checkpointing * self.resnet.layer_flops(image_size)


class PlainResNet(ResNetEncoder, ResNetLayers):
    """ResNet-50 on the bands themselves: 7x7 stem, max pooling, overall stride 32. The published baseline.

    Args:
        bands: C.
        bn_group: samples that share batch-norm statistics.
    """

    def __init__(self, bands: int, bn_group: int | None = None) -> None:
        ResNetLayers.__init__(self, bands, True, NO_DILATION, bn_group)
        self.stride, self.bands = 32, bands

    @property
    def core(self) -> ResNetLayers:
        return self

    def _map(self, images: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        return by_groups(lambda part: self._layers_of_images(part)[-1], images, self._bn_group)

    def _layer_maps(self, images: Tensor, spectrum: Spectrum | None = None) -> list[Tensor]:
        return _each_by_groups(self._layers_of_images, images, self._bn_group)

    def _layers_of_images(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(images.to(self.conv1.weight.dtype))))
        return self.layers(F.max_pool2d(x, 3, 2, padding=1))

    def _stem_parameters(self) -> list[nn.Parameter]:
        return [*self.conv1.parameters(), *self.bn1.parameters()]

    def flops(self, bands: int, image_size: int, visible: int | None = None) -> Parts:
        halved = -(-image_size // 2)
        stem = 2 * halved**2 * self.conv1.weight.numel()
        return {"stem": stem, "layers": self.layer_flops(-(-halved // 2))}

    def training_flops(self, bands: int, image_size: int, visible: int | None = None) -> Parts:
        forward = self.flops(bands, image_size)
        return times(3, forward) | {"stem": 2 * forward["stem"]}  # the image has no gradient

    def recomputed_flops(
        self, bands: int, image_size: int, visible: int | None = None, checkpointing: bool = False
    ) -> int:
        return checkpointing * self.flops(bands, image_size)["layers"]
