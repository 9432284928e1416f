"""The spectral adapter ("stem"): a small convolutional net along the spectrum of each pixel.

SpectralEarth writes it as Conv3d with kernels (k, 1, 1). Pixels never mix, so it runs here on a plain
list of pixels: any subset of an image, for example the visible patches of MAE, gives exactly what the
full image would give there. Parameter names and shapes are the published ones; the arithmetic is in
spectral_features.py.
"""

from typing import cast

import torch
from torch import Tensor, nn

from pretrain.models.activation_checkpointing import checkpointed
from pretrain.models.batchnorm import GroupedBatchNorm, num_groups
from pretrain.models.spectral_features import spectral_features
from pretrain.models.spectral_layers import Layer
from pretrain.models.stem import Stem

CHANNELS = 128
"""Features per pixel that the adapter hands to the trunk."""

LAYERS = ((1, 32, 7, 5), (32, 64, 7, 5), (64, CHANNELS, 5, 3))  # in, out, kernel, stride; padding 1


def _shortest_spectrum() -> int:
    """Return the length of the shortest spectrum that has a position left after all layers."""
    length = 1
    for _, _, kernel, stride in reversed(LAYERS):
        length = (length - 1) * stride + kernel - 2
    return length


class SpectralConv(nn.Module):
    """Weights of a convolution along the spectrum, in the published Conv3d's shape, (out, in, kernel, 1, 1)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Copy the weights to a matrix (kernel * in, out), and the bias: under ZeRO-3 they exist here only."""
        return self.weight.flatten(2).permute(2, 1, 0).flatten(0, 1).contiguous(), self.bias.clone()


class SpectralNorm(GroupedBatchNorm):
    """Scale, shift and statistics of a batch norm that the adapter computes."""

    def forward(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return copies of scale and shift."""
        return self.weight.clone(), self.bias.clone()


class SpectralAdapter(Stem):
    """Spectra in, ``CHANNELS`` features per pixel out; any number of bands from 75 on with the same weights.

    Args:
        bn_group: samples that share batch-norm statistics (see GroupedBatchNorm).
        bands: unused; every stem is called with it.

    With activation checkpointing of ``blocks`` it is recomputed as a whole; ``selective`` doesn't affect it.
    """

    channels = CHANNELS
    min_bands = _shortest_spectrum()

    def __init__(self, bn_group: int | None = None, bands: int | None = None) -> None:
        super().__init__()
        self.bn_group = bn_group
        for number, (inputs, outputs, kernel, stride) in enumerate(LAYERS):
            # The published module is a Sequential, so its parameters are called 0, 1, 3, 4, 6, 7.
            self.add_module(str(3 * number), SpectralConv(inputs, outputs, kernel, stride))
            self.add_module(str(3 * number + 1), SpectralNorm(outputs))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (samples, pixels, bands) normalized reflectance to (samples, pixels, CHANNELS).

        Raises:
            ValueError: fewer than 75 bands; in training, where the number of samples is not a multiple of ``bn_group``.
        """
        groups = num_groups(pixels, self.bn_group if self.training else None)
        checkpointing = self.training and self.activation_checkpointing == "blocks"
        spectra = pixels.reshape(groups, -1, pixels.shape[-1])
        features = checkpointed(self._features, "blocks" if checkpointing else "none", spectra)
        return features.view(*pixels.shape[:2], CHANNELS)

    def flops(self, bands: int) -> int:
        return sum(_layer_flops(bands))

    def training_flops(self, bands: int) -> int:
        """Three forwards, less the gradient of the pixels."""
        return 3 * self.flops(bands) - _layer_flops(bands)[0]

    def recomputed_flops(self, bands: int, checkpointing: bool) -> int:
        """Count the first layer in any case (see spectral_layers.py)."""
        return _layer_flops(bands)[0] + checkpointing * self.flops(bands)

    def _features(self, spectra: Tensor) -> Tensor:
        device, (_, pixels, positions) = spectra.device.type, spectra.shape
        layers = [self._layer(number) for number in range(len(LAYERS))]
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layers[0].weight.dtype
        with torch.autocast(device, enabled=False):
            features, moments = spectral_features(spectra, layers, dtype, self.is_fused(spectra, dtype))
        for number, layer in enumerate(layers):
            positions = layer.positions(positions)
            self._norm(number).record(moments[number], pixels * positions)
        return features

    def _norm(self, number: int) -> SpectralNorm:
        return cast(SpectralNorm, self.get_submodule(str(3 * number + 1)))

    def _layer(self, number: int) -> Layer:
        convolution, norm = cast(SpectralConv, self.get_submodule(str(3 * number))), self._norm(number)
        moments = None if norm.training else torch.stack([norm.running_mean, norm.running_var])
        (weight, bias), (scale, shift) = convolution(), norm()
        return Layer(convolution.kernel, convolution.stride, weight, bias, scale, shift, moments, norm.eps)


def _layer_flops(bands: int) -> list[int]:
    """Operations of each convolution on one pixel."""
    layers, length = [], bands
    for inputs, outputs, kernel, stride in LAYERS:
        length = (length + 2 - kernel) // stride + 1
        layers.append(2 * length * outputs * inputs * kernel)
    return layers
