"""The wave stem: pixel features from bands of any sensor, by weights made from their centers and widths.

DOFA (arXiv 2403.15356) and Copernicus-FM (arXiv 2503.11849) make the weights of a patch embedding in this way; here it
is a map of single pixels with the output of the spectral adapter. Its first operation is linear, so whatever is linear
in the spectrum, such as bands that are left out or a sensor that is made up, is a change of a matrix (C, FEATURES) and
costs nothing per pixel.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.adapter import CHANNELS
from pretrain.models.compilation import is_exporting
from pretrain.models.fused_wave import wave_features
from pretrain.models.spectrum import Spectrum, TakesSpectrum, spectral_weights, spectrum_of
from pretrain.models.stem import Stem
from pretrain.models.unit import Unit

FEATURES = 128
"""K, products of each pixel's spectrum."""

HIDDEN = 256
"""Width of the network from bands to weights."""

PERIODS, SHORTEST_NM, LONGEST_NM = 48, 12.0, 2500.0
"""Number and range of the periods whose sines and cosines describe a center."""

SCALE = 16.0
"""Factor of the products: weighted means of z-scores are small."""


def band_features(center_nm: Tensor, fwhm_nm: Tensor) -> Tensor:
    """Describe bands (..., N) by numbers of moderate size, float32 (..., N, 2 * PERIODS + 1)."""
    ends = math.log(2 * math.pi / LONGEST_NM), math.log(2 * math.pi / SHORTEST_NM)
    angles = center_nm[..., None] * torch.linspace(*ends, PERIODS, device=center_nm.device).exp()
    widths = fwhm_nm.clamp(min=1).log()[..., None] / 5
    return torch.cat([angles.sin(), angles.cos(), widths], -1)


class BandEmbedding(Unit):
    """A network from descriptions of bands to vectors.

    Args:
        outputs: numbers of a vector.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * PERIODS + 1, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.fc3 = nn.Linear(HIDDEN, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Map `band_features` (G, N, ...) to (G, N, outputs)."""
        x = features.to(self.fc1.weight.dtype)
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))

    def flops(self) -> int:
        """Operations of a forward on one band."""
        return 2 * sum(layer.weight.numel() for layer in (self.fc1, self.fc2, self.fc3))


class Norm(nn.LayerNorm):
    """Scale and shift of the layer norm of products."""

    def forward(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return copies of them: under ZeRO-3 they exist here only."""
        return self.weight.clone(), self.bias.clone()


class Projection(nn.Linear):
    """Weight and bias of a linear layer."""

    def forward(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return copies of them."""
        return self.weight.clone(), self.bias.clone()


class PixelProducts(Unit):
    """Products of pixels with a matrix, and a nonlinear map of these.

    It is no unit that torch.compile compiles: ZeRO-3 gathers the weights of these for a single call in a forward, and
    crops of several sizes make several.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm(FEATURES, eps=1e-6)
        self.out = Projection(FEATURES, CHANNELS)

    def forward(self, matrix: Tensor, pixels: Tensor, fused: bool) -> Tensor:
        """Map pixels (G, R, C) and matrices (G, C, FEATURES) to (G, R, CHANNELS) in the dtype of the matrices.

        Args:
            fused: use Triton kernels, which have no gradient for the pixels.
        """
        (scale, shift), (weight, bias) = self.norm(), self.out()
        with torch.autocast(pixels.device.type, enabled=False):
            if fused:
                return wave_features(pixels, matrix, scale, shift, weight, bias, self.norm.eps)
            products = pixels.to(matrix.dtype) @ matrix  # in whose dtype the rest is: autocast would take fp32
            normed = F.layer_norm(products, (FEATURES,), scale.to(products), shift.to(products), self.norm.eps)
            return F.linear(F.gelu(normed), weight.to(products), bias.to(products))


class WaveStem(TakesSpectrum, Stem):
    """Spectra of any bands in, ``CHANNELS`` features per pixel out.

    Args:
        bands, bn_group: unused; every stem is called with them.
    """

    channels = CHANNELS
    by_wavelength = True

    def __init__(self, bands: int | None = None, bn_group: int | None = None) -> None:
        super().__init__()
        self.embedding = BandEmbedding(FEATURES)
        self.products = PixelProducts()

    def forward(self, pixels: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        """Map (samples, pixels, C) normalized reflectance to (samples, pixels, CHANNELS).

        Args:
            spectrum: what the C channels are; None for the default.

        Raises:
            ValueError: no bands are known, or not those of C channels; samples that are not a multiple of the groups.
        """
        matrix = self.matrix(self._spectrum(pixels, spectrum))
        groups = len(matrix)
        if pixels.shape[0] % groups:
            raise ValueError(f"{pixels.shape[0]} samples are not a multiple of {groups} groups of bands")
        fused = self.is_fused(pixels, matrix.dtype) and not pixels.requires_grad and not is_exporting()
        features = self.products.run(matrix, pixels.reshape(groups, -1, pixels.shape[-1]), fused)
        return features.view(*pixels.shape[:2], CHANNELS)

    def matrix(self, spectrum: Spectrum) -> Tensor:
        """Return the weights of an image's channels for each group, (G, C, FEATURES), in the dtype of products."""
        vectors = self.embedding.run(band_features(spectrum.center_nm, spectrum.fwhm_nm))
        weights = SCALE * spectral_weights(spectrum.center_nm, spectrum.present)
        weighted = weights[..., None] * vectors.float()
        if spectrum.response is not None:
            with torch.autocast(weighted.device.type, enabled=False):
                weighted = spectrum.response.transpose(1, 2) @ weighted
        return weighted.to(vectors.dtype)

    def flops(self, bands: int) -> int:
        """Operations of a forward on one pixel; those on bands are the same for all pixels, and left out."""
        return 2 * FEATURES * (bands + CHANNELS)

    def training_flops(self, bands: int) -> int:
        """Three forwards, less the gradient of the pixels."""
        return 3 * self.flops(bands) - 2 * FEATURES * bands

    def recomputed_flops(self, bands: int, checkpointing: bool) -> int:
        return checkpointing * 2 * FEATURES * bands

    def _spectrum(self, pixels: Tensor, spectrum: Spectrum | None) -> Spectrum:
        spectrum = self.default if spectrum is None else spectrum
        if spectrum is None:
            raise ValueError("a wave stem needs the centers and widths of its bands: give a spectrum")
        channels = (spectrum.center_nm if spectrum.response is None else spectrum.response).shape[-1]
        if channels != pixels.shape[-1]:
            raise ValueError(f"images of {pixels.shape[-1]} bands, but a spectrum of {channels}")
        centers, widths, response = spectrum
        device = pixels.device
        return Spectrum(centers.to(device), widths.to(device), None if response is None else response.to(device))


def set_default_spectrum(model: nn.Module, wavelength_nm: Sequence[float], fwhm_nm: Sequence[float]) -> None:
    """Set the bands of images whose spectrum is not given, for all modules of a model that depend on them."""
    for module in model.modules():
        if isinstance(module, TakesSpectrum):
            module.default = spectrum_of(wavelength_nm, fwhm_nm)
