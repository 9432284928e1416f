"""The bands of a run's sources in tables of one width, for modules that take tiles of several sensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shards.format.manifest import Manifest


@dataclass(frozen=True)
class BandTables:
    """Bands and statistics of S sources, padded to the C bands of the widest.

    A padding band has width 0, mean 0 and standard deviation 1; tiles are NODATA there.

    Attributes:
        center_nm, fwhm_nm: band centers and widths in nm, float32 (S, C).
        mu, sigma: mean and standard deviation of digital numbers, float32 (S, C).
    """

    center_nm: Tensor
    fwhm_nm: Tensor
    mu: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> "BandTables":
        """Collect the tables of datasets, in the order of the sources."""
        columns = (("wavelength_nm", 0.0), ("fwhm_nm", 0.0), ("mean", 0.0), ("std", 1.0))
        return cls(*(torch.tensor(padded(manifests, name, fill)) for name, fill in columns))

    @property
    def present(self) -> Tensor:
        """Which bands a source has, bool (S, C)."""
        return self.fwhm_nm > 0

    @property
    def has_padding(self) -> bool:
        """Whether a source has fewer bands than the widest one."""
        return not bool(self.present.all())

    def to(self, device: torch.device) -> "BandTables":
        """Copy the tables to a device."""
        return BandTables(*(values.to(device) for values in vars(self).values()))


def padded(manifests: Sequence[Manifest], column: str, fill: float = 0.0) -> np.ndarray:
    """Return a column of the band tables of datasets, filled up to the widest, float32 (S, C)."""
    bands = max(manifest.tile_shape[0] for manifest in manifests)
    rows = [list(getattr(manifest, column)) for manifest in manifests]
    return np.array([row + [fill] * (bands - len(row)) for row in rows], dtype=np.float32)
