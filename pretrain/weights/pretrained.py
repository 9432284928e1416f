"""`PretrainedEncoder`: images in, features out, with the bands and normalization of the encoder's file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.models.compilation import is_exporting
from pretrain.models.encoder import Encoder, Output
from pretrain.models.normalize import Normalizer
from pretrain.models.wave import set_default_spectrum
from pretrain.weights.band_input import BandInput, by_wavelength
from pretrain.weights.description import EXTRA_STATE, EncoderDescription, WeightsError, from_extra_state, to_extra_state
from pretrain.weights.files import export_weights, load_encoder
from pretrain.weights.formats import bare_name
from pretrain.weights.hub import fetch
from pretrain.weights.images import (
    Images,
    ValueRange,
    band_centers,
    check_bands,
    scale_of,
    to_batch,
    to_tensor,
    value_range,
)
from pretrain.weights.raw_checkpoint import ENCODER_FILE
from shards.plugins import load_plugins
from shards.sensors.band_match import match_bands
from shards.sensors.sensor import MATCH_TOLERANCE_NM, NODATA

RESAMPLE = "resample the spectra to its bands, spectralforge.resample(cube, wavelengths_nm, fwhm_nm, to=encoder)"


class PretrainedEncoder(nn.Module):
    """An encoder with its description and normalization.

    Images are digital numbers (reflectance x 10000) or reflectance, (B, C, H, W) or one (C, H, W): arrays or tensors
    of any number type (pretrain/weights/images.py). -32768, NaN, infinities and masked pixels are missing. Where
    ``wavelengths_nm`` (or micrometers) names the bands of an array, the encoder's bands are picked from it, in any
    order; otherwise the array must have exactly the encoder's bands. For bands of another sensor see ``resample``.
    An encoder by wavelength (``model.stem: wave``) takes any bands as they are, with widths ``fwhm_nm`` (None: the
    distance to the nearer neighbor); the statistics of its own bands are interpolated along the wavelength.

    Attributes:
        encoder: the network, in evaluation mode.
        description: the description in its file.
    """

    def __init__(self, encoder: Encoder, description: EncoderDescription) -> None:
        super().__init__()
        self.encoder = encoder
        self._describe(description)
        self.register_load_state_dict_pre_hook(_keep_description)
        self.eval()

    @property
    def wavelength_nm(self) -> list[float]:
        """Band centers that the encoder takes, in nm, in its order."""
        return self.description.wavelength_nm

    def forward(
        self,
        images: Any,
        wavelengths_nm: Sequence[float] | None = None,
        output: Output = "pooled",
        fwhm_nm: Sequence[float] | None = None,
    ) -> Tensor:
        """Return features with gradients: pooled (B, D), or with ``output="map"`` (B, D, h, w).

        Raises:
            WeightsError: bands, size or values that the encoder doesn't take, or an unknown normalization.
        """
        batch, bands = self._read(images, wavelengths_nm, fwhm_nm)
        return self._features(batch, bands, None, output)

    @torch.no_grad()
    def encode(
        self,
        images: Any,
        wavelengths_nm: Sequence[float] | None = None,
        fwhm_nm: Sequence[float] | None = None,
        *,
        batch_size: int = 32,
    ) -> Tensor:
        """Return pooled features, float32 (B, D), without gradients, ``batch_size`` images at a time."""
        return self._in_batches(images, wavelengths_nm, fwhm_nm, batch_size, "pooled")

    @torch.no_grad()
    def features(
        self,
        images: Any,
        wavelengths_nm: Sequence[float] | None = None,
        fwhm_nm: Sequence[float] | None = None,
        *,
        batch_size: int = 32,
    ) -> Tensor:
        """Return the feature map (B, D, h, w); see ``encode``."""
        return self._in_batches(images, wavelengths_nm, fwhm_nm, batch_size, "map")

    @torch.no_grad()
    def get_intermediate_layers(
        self,
        images: Any,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        wavelengths_nm: Sequence[float] | None = None,
        fwhm_nm: Sequence[float] | None = None,
    ) -> tuple:
        """Return features of several layers without gradients; see ``Encoder.get_intermediate_layers``."""
        batch, bands = self._read_some(images, wavelengths_nm, fwhm_nm)
        values = self._normalized(batch, bands, None)
        return self.encoder.get_intermediate_layers(values, n, reshape, return_prefix_tokens, norm, bands.spectrum)

    def normalized(self, images: Any, wavelengths_nm: Sequence[float] | None = None) -> Tensor:
        """Return images as the network ``encoder`` takes them, float32 (B, bands, H, W); raises as forward."""
        batch, bands = self._read_some(images, wavelengths_nm, None)
        return self._normalized(batch, bands, None)

    def save(self, path: str | Path) -> Path:
        """Write an encoder file that ``load_encoder`` reads with the same features, and its model card beside it.

        Args:
            path: the file, ``*.safetensors``, or a folder for ``encoder.safetensors``.

        Returns:
            The file.

        Raises:
            WeightsError: the file can't be written, or the weights no longer fit the architecture.
        """
        dest = Path(path)
        dest = dest if dest.suffix and not dest.is_dir() else dest / ENCODER_FILE
        weights = {bare_name(name): tensor for name, tensor in self.encoder.state_dict().items()}
        try:
            export_weights(dest, weights, self.description)
        except OSError as error:
            raise WeightsError(f"{dest}: can't be written: {error.strerror or error}; choose another path") from None
        return dest

    def get_extra_state(self) -> Tensor:
        """Return the description, so that a state dict with this encoder's weights says how to use them."""
        return to_extra_state(self.description)

    def set_extra_state(self, state: Tensor) -> None:
        """Adopt the description that belongs to the weights being loaded."""
        described = from_extra_state(state)
        if described is None:
            raise WeightsError("the state dict's description of its encoder is damaged; save it again")
        self._describe(described)

    def _describe(self, description: EncoderDescription) -> None:
        self.description = description
        known = bool(description.mu and description.sigma)
        normalize = Normalizer(description.mu, description.sigma, description.clip) if known else None
        if known and description.wavelength_nm:
            set_default_spectrum(self.encoder, description.wavelength_nm, description.fwhm_nm)
        device = next(self.encoder.parameters()).device
        self.normalize = None if normalize is None else normalize.to(device)

    def extra_repr(self) -> str:
        known = self.description
        objective = known.objective or "unknown objective"
        return f"{known.architecture}, {known.sensor}, {known.bands} bands, {objective}"

    def _in_batches(self, images: Any, wavelengths_nm: Any, fwhm_nm: Any, batch_size: int, output: Output) -> Tensor:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise WeightsError(f"batch_size {batch_size!r}: give a whole number above 0")
        batch, bands = self._read(images, wavelengths_nm, fwhm_nm)
        parts = [batch[begin : begin + batch_size] for begin in range(0, max(len(batch), 1), int(batch_size))]
        scale = None if len(parts) == 1 else scale_of(self._range(part, self._numbers(part, bands)) for part in parts)
        return torch.cat([self._features(part, bands, scale, output) for part in parts])

    def _read_some(self, images: Any, wavelengths_nm: Any, fwhm_nm: Any) -> tuple[Images, BandInput]:
        """As `_read`; no images are an error."""
        batch, bands = self._read(images, wavelengths_nm, fwhm_nm)
        if batch.shape[0] == 0:
            raise WeightsError("images: empty; give at least one")
        return batch, bands

    def _read(self, images: Any, wavelengths_nm: Any, fwhm_nm: Any) -> tuple[Images, BandInput]:
        """Return images as given, checked except for their values, and how their bands are the encoder's input."""
        batch, bands = to_batch(images), None
        count = self.description.bands
        if wavelengths_nm is not None:
            if len(self.wavelength_nm) != count:
                raise WeightsError(
                    f"the encoder's file doesn't say which {count} bands it takes: give images of only those bands "
                    "without wavelengths_nm, or name its sensor, spectralforge-convert FILE encoder.safetensors "
                    "--sensor NAME"
                )
            centers = band_centers(wavelengths_nm)
            check_bands(batch, len(centers), f"{len(centers)} wavelengths were given; give one per band")
            if self.encoder.by_wavelength:
                self._check_size(batch)
                self._require_statistics()
                given = by_wavelength(self.description, wavelengths_nm, fwhm_nm)
                return batch, given._replace(normalize=given.normalize.to(self._device))
            bands = self._bands_of(centers, len(centers))
            if len(centers) < count:  # one is near to two of the encoder's
                raise WeightsError(f"images of {len(centers)} bands: this encoder takes {count}; {RESAMPLE}")
        if bands is None:
            check_bands(batch, count, f"this encoder takes {count}; describe them with wavelengths_nm")
        self._check_size(batch)
        return batch, BandInput(self._require_statistics(), bands)

    def _require_statistics(self) -> Normalizer:
        if self.normalize is None:
            raise WeightsError(
                "the encoder's file doesn't say how its images were normalized: give it the statistics, "
                "spectralforge-convert FILE encoder.safetensors --statistics FOLDER (with mu.npy and sigma.npy)"
            )
        return self.normalize

    def _features(self, batch: Images, bands: BandInput, scale: float | None, output: Output) -> Tensor:
        if batch.shape[0] == 0:
            size = [] if output == "pooled" else [side // self.encoder.stride for side in batch.shape[2:]]
            return torch.empty(0, self.encoder.feature_dim, *size, device=self._device)
        spectrum = [] if bands.spectrum is None else [bands.spectrum]
        return self.encoder(self._normalized(batch, bands, scale), output, *spectrum).float()

    def _normalized(self, batch: Images, bands: BandInput, scale: float | None) -> Tensor:
        """float32 images of the encoder's bands on its device; ``scale=None`` infers the scale from their values."""
        values = self._numbers(batch, bands)
        if scale is None:
            scale = scale_of([self._range(batch, values)])
        if scale != 1:
            value_range(values, scale)
            values = torch.where(values == NODATA, values, values * scale)
        return bands.normalize(values.float() if values.is_floating_point() else values)

    def _numbers(self, batch: Images, bands: BandInput) -> Tensor:
        return to_tensor(batch if bands.positions is None else batch[:, bands.positions]).to(self._device)

    def _range(self, batch: Images, values: Tensor) -> ValueRange | None:
        """The range of the values; None for integers that are already on a GPU, since reading them would synchronize.

        None in an export, too, which takes digital numbers.
        """
        unseen = is_exporting() or (
            isinstance(batch, Tensor) and batch.device.type != "cpu" and not batch.is_floating_point()
        )
        return None if unseen else value_range(values)

    @property
    def _device(self) -> torch.device:
        assert self.normalize is not None
        return self.normalize.mu.device

    def _bands_of(self, centers: np.ndarray, count: int) -> list[int]:
        """Where each of the encoder's bands is among ``count`` bands with these centers."""
        encoder_nm = np.asarray(self.wavelength_nm)
        distance = np.abs(encoder_nm[:, None] - centers)
        nearest = distance.argmin(1)
        paired = match_bands(tuple(self.wavelength_nm), tuple(np.asarray(centers).tolist()))
        positions = nearest if paired is None else paired
        missing = np.flatnonzero(distance[np.arange(len(encoder_nm)), positions] > MATCH_TOLERANCE_NM)
        if len(missing):
            raise WeightsError(
                f"no band within {MATCH_TOLERANCE_NM:g} nm of {encoder_nm[missing[0]]:g} nm "
                f"({len(missing)} of {len(encoder_nm)} missing): {RESAMPLE}"
            )
        return positions.tolist()

    def _check_size(self, batch: Images) -> None:
        step = self.encoder.size_multiple
        height, width = batch.shape[2:]
        if height % step or width % step or not height or not width:
            raise WeightsError(f"images of {height} x {width} px: this encoder takes multiples of {step} px")


def _keep_description(module: PretrainedEncoder, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Keep the module's description where a state dict of an earlier version has none."""
    state.setdefault(prefix + EXTRA_STATE, module.get_extra_state())


def load_pretrained(location: str | Path, plugins: Sequence[str] = (), **options: Any) -> PretrainedEncoder:
    """Load an encoder from a file of any format, a folder, a run, or a URL.

    Args:
        location: a file of any format of docs/weights.md, a folder with ``encoder.safetensors``, the folder of a run or
            of a checkpoint, or a URL.
        plugins: modules and .py files to import first, where the encoder is of a plugin.
        options: ``image_size`` in pixels, to which position embeddings are interpolated; ``network``, "student" or
            "teacher" of checkpoints that have both (default: DINO's teacher); and those of
            `pretrain.weights.files.load_encoder`.

    Returns:
        The encoder in evaluation mode on the CPU, fp32.

    Raises:
        WeightsError: the file is missing or damaged, or does not hold the whole encoder.
        ConfigError: a plugin can't be imported.
    """
    load_plugins(plugins, "load_encoder")
    path = fetch(location)
    exported = path / ENCODER_FILE
    return PretrainedEncoder(*load_encoder(exported if exported.is_file() else path, **options))
