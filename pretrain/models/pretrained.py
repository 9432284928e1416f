"""An encoder as people use it: digital numbers in, features out; the file knows bands and normalisation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.models.description import EncoderDescription, WeightsError
from pretrain.models.encoder import Encoder, Output
from pretrain.models.hub import from_pretrained
from pretrain.models.normalise import Normaliser
from pretrain.models.vit import ViTEncoder
from shards.sensors import MATCH_TOLERANCE_NM, NODATA


class PretrainedEncoder(nn.Module):
    """An encoder with its description and normalisation.

    Images are digital numbers (B, C, H, W), or one (C, H, W), as numpy array or tensor of any number type; -32768
    and NaN are missing. Where ``wavelengths_nm`` names the bands of an array, the encoder's are picked from it, in
    whatever order it has them; without it, the array has exactly the encoder's bands.

    Attributes:
        encoder: the network, in evaluation mode.
        description: what its file says of it.
    """

    def __init__(self, encoder: Encoder, description: EncoderDescription) -> None:
        super().__init__()
        self.encoder, self.description = encoder, description
        known = bool(description.mu and description.sigma)
        self.normalise = Normaliser(description.mu, description.sigma, description.clip) if known else None
        self.eval()

    @property
    def wavelength_nm(self) -> list[float]:
        """Band centres that the encoder takes, in nm, in its order."""
        return self.description.wavelength_nm

    def forward(self, images: Any, wavelengths_nm: Sequence[float] | None = None, output: Output = "pooled") -> Tensor:
        """Features with gradients, for those who train on: pooled (B, D), or with ``output`` ``map`` (B, D, h, w).

        Raises:
            WeightsError: bands or size are not the encoder's, or how to normalise is unknown.
        """
        return self.encoder(self._input(images, wavelengths_nm), output).float()

    @torch.no_grad()
    def encode(self, images: Any, wavelengths_nm: Sequence[float] | None = None, batch_size: int = 32) -> Tensor:
        """Pooled features (B, D), float32, without gradients, ``batch_size`` images at a time; raises as forward."""
        return self._in_batches(images, wavelengths_nm, batch_size, "pooled")

    @torch.no_grad()
    def features(self, images: Any, wavelengths_nm: Sequence[float] | None = None, batch_size: int = 32) -> Tensor:
        """The feature map (B, D, h, w), else as ``encode``."""
        return self._in_batches(images, wavelengths_nm, batch_size, "map")

    @torch.no_grad()
    def get_intermediate_layers(
        self,
        images: Any,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        wavelengths_nm: Sequence[float] | None = None,
    ) -> tuple:
        """Features of several layers; see ``Encoder.get_intermediate_layers``."""
        values = self._input(images, wavelengths_nm)
        return self.encoder.get_intermediate_layers(values, n, reshape, return_prefix_tokens, norm)

    def extra_repr(self) -> str:
        told = self.description
        return f"{told.architecture}, {told.sensor}, {told.bands} bands, {told.objective or 'unknown objective'}"

    def _in_batches(
        self, images: Any, wavelengths_nm: Sequence[float] | None, batch_size: int, output: Output
    ) -> Tensor:
        values = _as_batch(images)
        parts = [self(part, wavelengths_nm, output) for part in values.split(batch_size)]
        return torch.cat(parts)

    def _input(self, images: Any, wavelengths_nm: Sequence[float] | None) -> Tensor:
        """Normalised float32 images of the encoder's bands, on its device."""
        values = _as_batch(images)
        if wavelengths_nm is not None:
            values = values[:, self._bands_of(wavelengths_nm, values.shape[1])]
        if values.shape[1] != self.description.bands:
            raise WeightsError(
                f"images of {values.shape[1]} bands: this encoder takes {self.description.bands}; "
                "name theirs with wavelengths_nm"
            )
        self._check_size(values)
        if self.normalise is None:
            raise WeightsError(
                "the encoder's file doesn't say how its images were normalised: give it the statistics, "
                "python -m tools.convert FILE encoder.safetensors --statistics FOLDER (with mu.npy and sigma.npy)"
            )
        values = values.to(self.normalise.mu.device)
        if values.is_floating_point():
            values = values.float().nan_to_num(nan=float(NODATA))
        return self.normalise(values)

    def _bands_of(self, wavelengths_nm: Sequence[float], count: int) -> list[int]:
        """Where each of the encoder's bands is in an array whose bands have these centres."""
        centres = np.asarray(wavelengths_nm, dtype=np.float64)
        if centres.shape != (count,):
            raise WeightsError(f"{centres.size} wavelengths for images of {count} bands: give one for each band")
        distance = np.abs(np.asarray(self.wavelength_nm)[:, None] - centres)
        missing = np.flatnonzero(distance.min(1) > MATCH_TOLERANCE_NM)
        if len(missing):
            raise WeightsError(
                f"no band within {MATCH_TOLERANCE_NM:g} nm of {self.wavelength_nm[missing[0]]:g} nm "
                f"({len(missing)} of {len(self.wavelength_nm)} missing): resample the spectra to encoder.wavelength_nm"
            )
        return distance.argmin(1).tolist()

    def _check_size(self, values: Tensor) -> None:
        step = self.encoder.patch_size if isinstance(self.encoder, ViTEncoder) else 1
        height, width = values.shape[2:]
        if height % step or width % step or not height or not width:
            raise WeightsError(f"images of {height} x {width} px: this encoder takes multiples of {step} px")


def load_pretrained(location: str | Path, **options: Any) -> PretrainedEncoder:
    """The encoder in a file of any format, a folder, a run, or behind a URL (``hub.from_pretrained``).

    Args:
        options: ``load_encoder``'s, e.g. ``image_size``, ``network``.

    Raises:
        WeightsError: nothing there, damaged, or not an encoder in full.
    """
    return PretrainedEncoder(*from_pretrained(location, **options))


def _as_batch(images: Any) -> Tensor:
    values = torch.as_tensor(images)
    if values.dim() == 3:
        values = values[None]
    if values.dim() != 4:
        raise WeightsError(f"images of shape {tuple(values.shape)}: give (B, bands, height, width)")
    return values
