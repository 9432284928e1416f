"""The spectral adapter ("stem"): a small convolutional net along the spectrum of each pixel.

SpectralEarth writes it as Conv3d with kernels (k, 1, 1). Pixels never mix, so it runs here on a plain
list of pixels: any subset of an image, for example the visible patches of MAE, gives exactly what the
full image would give there. Parameter names and shapes are the published ones.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.batchnorm import GroupedBatchNorm, by_groups
from pretrain.models.recompute import recomputed

CHANNELS = 128
"""Features per pixel that the adapter hands to the trunk."""

LAYERS = ((1, 32, 7, 5), (32, 64, 7, 5), (64, CHANNELS, 5, 3))  # in, out, kernel, stride; padding 1


class SpectralConv(nn.Module):
    """Convolution along the spectrum with the weight shape of the published Conv3d, (out, in, kernel, 1, 1)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, 1, 1))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(pixels, in, length) to (pixels, out, shorter length)."""
        # Three dimensions, not five: conv1d is twice as fast on CPU, and cuDNN's conv3d has slow and
        # memory-hungry bf16 paths in several releases.
        weight = self.weight.flatten(2)
        # In training a batch norm follows, which takes any bias out again: the bias's gradient is zero but
        # for rounding, and Adam would blow that noise up to full steps. Here it is zero exactly.
        bias = self.bias.detach() + 0 * self.bias if self.training else self.bias
        return F.conv1d(x.to(weight.dtype), weight, bias, stride=self.stride, padding=1)


class SpectralAdapter(nn.Module):
    """Spectra in, ``CHANNELS`` features per pixel out; any number of bands from 75 on with the same weights.

    Args:
        bn_group: samples that share batch-norm statistics (see GroupedBatchNorm).

    Attributes:
        recompute: drop the activations in training and compute them again in the backward pass.
    """

    def __init__(self, bn_group: int | None = None) -> None:
        super().__init__()
        self.bn_group, self.recompute = bn_group, False
        for number, (inputs, outputs, kernel, stride) in enumerate(LAYERS):
            # The published module is a Sequential, so its parameters are called 0, 1, 3, 4, 6, 7.
            self.add_module(str(3 * number), SpectralConv(inputs, outputs, kernel, stride))
            self.add_module(str(3 * number + 1), GroupedBatchNorm(outputs))

    def forward(self, pixels: Tensor) -> Tensor:
        """(samples, pixels, bands) normalised reflectance to (samples, pixels, CHANNELS).

        Raises:
            ValueError: in training, where the samples are no multiple of ``bn_group``.
        """
        layers = partial(recomputed, self._features, self.recompute and self.training)
        return by_groups(layers, pixels, self.bn_group if self.training else None)

    def _features(self, pixels: Tensor) -> Tensor:
        samples, count, bands = pixels.shape
        x = pixels.reshape(samples * count, 1, bands)
        for number in range(len(LAYERS)):
            x = self.get_submodule(str(3 * number))(x)
            x = F.relu(self.get_submodule(str(3 * number + 1))(x))
        return x.mean(-1).view(samples, count, CHANNELS)
