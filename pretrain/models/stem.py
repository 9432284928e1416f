"""Stems: what turns the spectrum of each pixel into the features that an encoder's trunk takes."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.kernels.launching import kernels_problem, usable
from pretrain.models.flops import count_flops
from pretrain.models.unit import Unit, units
from shards.errors import ConfigError

StemKernel = Literal["auto", "eager", "triton"]
"""Torch's operations or Triton's kernels; ``auto`` for kernels wherever they run."""


class Stem(Unit, ABC):
    """Spectra in, features per pixel out. Pixels never mix, so any subset of an image can go through it.

    A stem is registered in ``pretrain.registries.STEMS``. It is called with the keywords ``bands`` (of the images) and
    ``bn_group`` (samples that share batch-norm statistics, None for all), and with the options of its config.

    Attributes:
        channels: features per pixel.
        bands: number of bands that it takes; None for any number from ``min_bands`` on.
        min_bands: fewest bands that it takes.
        by_wavelength: whether it is also called with a `Spectrum`, what the bands of the pixels are.
        kernel: how stems that have kernels are computed in half precision; other precisions are ``eager``.
    """

    channels: int
    bands: int | None = None
    min_bands: int = 1
    by_wavelength: bool = False
    kernel: StemKernel = "auto"

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

    def is_fused(self, pixels: Tensor, dtype: torch.dtype) -> bool:
        """Return whether a stem with kernels uses them for products of a dtype."""
        if dtype not in (torch.float16, torch.bfloat16) or self.kernel == "eager":
            return False
        return self.kernel == "triton" or usable(pixels)


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


def set_stem_kernel(model: nn.Module, kernel: StemKernel, device: torch.device) -> None:
    """Set how the stems of a model are computed on a device.

    Raises:
        ConfigError: Triton's kernels can't run there.
    """
    problem = kernels_problem(device) if kernel == "triton" else None
    if problem:
        raise ConfigError(f"engine.stem_kernel triton: {problem}; auto takes torch's operations there")
    for unit in units(model):
        if isinstance(unit, Stem):
            unit.kernel = kernel
