"""Spec. ResNet-50: the spectral adapter at full resolution, then a ResNet-50 without stem and pooling.

The first block of layer1 is SpectralEarth's own: 256 channels wide throughout, stride 2, no expansion. All others
are ResNet-50's bottlenecks (He et al., arXiv 1512.03385; stride in the 3x3 convolution). Overall stride 16:
128x128 pixels become 8x8 positions of 2048 features. Parameter names and shapes are the published ones.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.adapter import CHANNELS, SpectralAdapter

FEATURES = 2048
_LAYERS = ((256, 64, 3), (512, 128, 4), (1024, 256, 6), (FEATURES, 512, 3))  # out, width, blocks


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with batch norms around a shortcut.

    Args:
        inputs, width, outputs: channels before, within and after.
        stride, dilation: of the 3x3 convolution.
    """

    def __init__(self, inputs: int, width: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNetTrunk(nn.Module):
    """Four layers of bottlenecks.

    Args:
        dilate: for each layer, whether a dilation takes the place of its stride (all: full resolution).
    """

    def __init__(self, dilate: Sequence[bool] = (False, False, False, False)) -> None:
        super().__init__()
        inputs, dilation = CHANNELS, 1
        for number, ((outputs, width, blocks), dilated) in enumerate(zip(_LAYERS, dilate, strict=True)):
            stride = 1 if dilated else 2
            dilation *= 2 if dilated and number else 1  # the published option counts 1, 2, 4, 8
            first = outputs if number == 0 else width  # layer1.0 is as wide as its output
            layer = [Bottleneck(inputs, first, outputs, stride, dilation)]
            layer += [Bottleneck(outputs, width, outputs, 1, dilation) for _ in range(blocks - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*layer))
            inputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, CHANNELS, H, W) to (B, FEATURES, H/16, W/16)."""
        for number in range(len(_LAYERS)):
            x = self.get_submodule(f"layer{number + 1}")(x)
        return x


class SpecResNet(nn.Module):
    """Adapter and trunk under their published names.

    Args:
        dilate: see ResNetTrunk.
        bn_group: samples that share batch-norm statistics in the adapter.
    """

    def __init__(self, dilate: Sequence[bool] = (False, False, False, False), bn_group: int | None = None) -> None:
        super().__init__()
        self.spectral_adapter = SpectralAdapter(bn_group)
        self.resnet = ResNetTrunk(dilate)

    def forward_map(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised reflectance to the feature map (B, FEATURES, H/16, W/16)."""
        batch, _, height, width = images.shape
        pixels = images.flatten(2).transpose(1, 2)  # (B, H*W, C)
        features = self.spectral_adapter(pixels).transpose(1, 2).reshape(batch, CHANNELS, height, width)
        return self.resnet(features)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to one feature vector a sample, (B, FEATURES): the mean over the map."""
        return self.forward_map(images).mean((2, 3))
