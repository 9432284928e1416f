"""Stems: what turns the spectrum of each pixel into the features that an encoder's trunk takes."""

from abc import ABC, abstractmethod

from torch import Tensor

from pretrain.models.flops import count_flops
from pretrain.models.unit import Unit


class Stem(Unit, ABC):
    """Spectra in, features per pixel out. Pixels never mix, so any subset of an image can go through it.

    A stem is registered in ``pretrain.registries.STEMS``. It is called with the keywords ``bands`` (of the images) and
    ``bn_group`` (samples that share batch-norm statistics, None for all), and with the options of its config.

    Attributes:
        channels: features per pixel.
        bands: number of bands that it takes; None for any number from ``min_bands`` on.
        min_bands: fewest bands that it takes.
        by_wavelength: whether it is also called with a `Spectrum`, what the bands of the pixels are.
    """

    channels: int
    bands: int | None = None
    min_bands: int = 1
    by_wavelength: bool = False

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Map (samples, pixels, bands) normalized reflectance to (samples, pixels, channels)."""

    def flops(self, bands: int) -> int:
        """Operations of a forward on one pixel."""
        return count_flops(self, (1, 1, bands))

    def training_flops(self, bands: int) -> int:
        """Operations of a forward and a backward on one pixel, those recomputed left out."""
        return 3 * self.flops(bands)

    def recomputed_flops(self, bands: int, checkpointing: bool) -> int:
        """Operations on one pixel that the backward pass repeats, with or without activation checkpointing."""
        return 0


class NoStem(Stem):
    """Hand the bands themselves to the trunk.

    Args:
        bands: C.
        bn_group: unused; every stem is called with it.
    """

    def __init__(self, bands: int, bn_group: int | None = None) -> None:
        super().__init__()
        self.channels = self.bands = bands

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels

    def flops(self, bands: int) -> int:
        return 0
