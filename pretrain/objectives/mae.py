"""Masked autoencoding of hyperspectral tiles (MAE, arXiv 2111.06377, as SpectralEarth trains it).

Patches are masked in space, all bands at once. The target is the patch's own pixels, (row, column,
band), normalized per patch with unbiased variance; the loss is the mean squared error over masked patches.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.config.objective import MaeConfig
from pretrain.data.draws import Draws, to_device
from pretrain.data.made_sensors import draw_hidden, made_spectrum
from pretrain.data.stream import TileBatch
from pretrain.engine.zero import ZeroEngine
from pretrain.models.flops import Parts
from pretrain.models.normalize import Normalizer
from pretrain.models.spectrum import Spectrum
from pretrain.models.vit import ViTEncoder
from pretrain.objectives.image_bands import ImageBands
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder, masked_pixels
from pretrain.objectives.masks import MaskedPatches, choose_masks, mask_noise
from pretrain.objectives.objective import (
    Evaluation,
    Objective,
    build_module_encoder,
    feature_spread,
    recomputes_blocks,
)
from pretrain.weights.initial_weights import InitialWeights
from shards.format.manifest import Manifest, sensor_of
from shards.order.random_bits import fold_in
from shards.sensors.sensor import NODATA

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _has_value(tiles: Tensor, present: Tensor | None) -> Tensor:
    """Map int16 (B, C, H, W) to float (B, 1, H, W): 1 where a pixel has all ``present`` bands, bool (B, C); or all."""
    values = tiles if present is None else tiles.masked_fill(~present[:, :, None, None], 0)
    return (values.amin(1, keepdim=True) > NODATA).float()  # the smallest int16: a single pass over the tiles


def _held(batches: Iterator[TileBatch], count: int) -> Iterator[TileBatch]:
    """Yield some batches that stay valid together: the next one ends the validity of a batch, unless it is a copy."""
    for number in range(count):
        batch = next(batches)
        yield batch if number == count - 1 else replace(batch, tiles=batch.tiles.clone())


class MaeObjective(Objective):
    """MAE in a training run."""

    module: MaskedAutoencoder

    def __init__(
        self,
        config: PretrainConfig,
        normalize: Normalizer,
        manifests: Sequence[Manifest],
        initial: InitialWeights | None = None,
    ) -> None:
        super().__init__(config, normalize, manifests, initial)
        self.mae = cast(MaeConfig, config.objective)
        self.ignore_nodata = self.mae.ignore_nodata

    @classmethod
    def build_module(cls, config: PretrainConfig, bands: int, normalize: Normalizer | None = None) -> MaskedAutoencoder:
        mae, encoder = cast(MaeConfig, config.objective), cast(ViTEncoder, build_module_encoder(config, bands))
        encoder.core.fix_positions()
        return MaskedAutoencoder(
            encoder,
            bands,
            mae.mask_ratio,
            mae.norm_pix,
            mae.decoder.width,
            mae.decoder.depth,
            mae.decoder.heads,
            config.model.attention,
            mae.spectral_angle,
            normalize,
            mae.decode_share,
            mae.masking,
        )

    @classmethod
    def flops(cls, module: MaskedAutoencoder, config: PretrainConfig, bands: int) -> Parts:
        visible, masked = module.count_patches()
        decoder = module.decoder.flops(visible, masked, config.train.micro_batch)
        return module.encoder.training_flops(bands, config.model.image_size, visible) | {"decoder": 3 * decoder}

    @classmethod
    def recomputed_flops(cls, module: MaskedAutoencoder, config: PretrainConfig, bands: int) -> int:
        checkpointing, (visible, masked) = recomputes_blocks(config), module.count_patches()
        encoder = module.encoder.recomputed_flops(bands, config.model.image_size, visible, checkpointing)
        decoder = module.decoder.recomputed_flops(visible, masked, config.train.micro_batch) if checkpointing else 0
        return encoder + decoder

    def draws(self, samples: np.ndarray, sources: np.ndarray) -> Draws:
        drawn = {
            "crop": self.draw_views(self.augment, samples, sources, "crop"),
            "masks": self._draw_masks(samples, "mask", self.module.decode_share),
        }
        if self.mae.hides_bands:
            drawn["hidden"] = (self._draw_hidden(samples, sources, "hidden bands"),)
        return drawn | self.draw_sensors(samples, sources, "crop")

    def _draw_masks(self, samples: np.ndarray, name: str, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        noise = mask_noise(samples, self.seed, self.module.num_patches, name, self.mae.masking)
        return choose_masks(noise, self.module.mask_ratio, share, self.mae.masking)

    def _draw_hidden(self, samples: np.ndarray, sources: np.ndarray, name: str, group: int | None = None) -> np.ndarray:
        """Draw which bands the encoder doesn't see, bool (G, C)."""
        group = self.config.model.bn_group if group is None else group
        bands = self.group_bands(sources, group)
        return draw_hidden(self.mae.band_ratio, samples[::group], fold_in(self.seed, name), *bands)

    def losses(self, engine: ZeroEngine, batches: Iterator[TileBatch], step: int) -> Iterator[Tensor]:
        """See Objective. If missing pixels don't count, the divisor is the number of others in the whole batch.

        It must be known before the first forward pass. Until then, micro batches are kept as integers.
        """
        if not self.ignore_nodata:
            yield from super().losses(engine, batches, step)
            return
        held = deque((batch, self._valid(batch)) for batch in _held(batches, engine.accumulation))
        counted = torch.stack([self._count(batch, valid) for batch, valid in held]).sum()
        terms = (distributed.all_reduce_sum(counted) / self.config.train.global_batch).clamp(min=1)
        while held:
            yield self._forward(engine, *held.popleft(), terms)

    def loss(self, engine: ZeroEngine, batch: TileBatch, step: int) -> Tensor:
        return self._forward(engine, batch)

    def _forward(self, engine: ZeroEngine, batch: TileBatch, *valid_and_terms: Tensor) -> Tensor:
        valid, terms = valid_and_terms or (None, None)
        losses, _, _, features = engine(self._images(batch), self._masks(batch), valid, terms, self._bands(batch))
        self.scalars.add(feature_std=feature_spread(features))
        return self.mean_loss(losses, batch)

    def _bands(self, batch: TileBatch) -> ImageBands:
        bands = self.spectrum(batch.sources, self.config.model.bn_group)
        return self._image_bands(bands, batch.sources, batch.draws.get("hidden"), batch.draws.get("sensors crop"))

    def _image_bands(
        self,
        bands: Spectrum | None,
        sources: Tensor,
        hidden: Sequence[Tensor] | None = None,
        sensors: Sequence[Tensor] | None = None,
    ) -> ImageBands:
        """Return what the encoder sees of images with these bands, and what is predicted."""
        several = sources if len(self.manifests) > 1 else None
        if bands is None:
            return ImageBands(several)
        seen = wanted = bands
        if hidden is not None:
            bands = bands._replace(center_nm=bands.center_nm.expand(hidden[0].shape))
            seen = bands._replace(fwhm_nm=bands.fwhm_nm * ~hidden[0])
            wanted = bands._replace(fwhm_nm=bands.fwhm_nm * hidden[0]) if self.mae.masking == "spectral" else wanted
        return ImageBands(several, seen if sensors is None else made_spectrum(seen, *sensors), wanted)

    def _images(self, batch: TileBatch) -> Tensor:
        """Return the crops (B, C, S, S): int16, or normalized if they are resampled."""
        tiles = self.normalized(batch.tiles, batch.tile_sources) if self.augment.resamples else batch.tiles
        return self.augment.views(tiles, batch.draws["crop"])

    def _masks(self, batch: TileBatch) -> MaskedPatches:
        return MaskedPatches(*batch.draws["masks"])

    def _valid(self, batch: TileBatch) -> Tensor:
        """Return which pixels of the crops have a value, bool (B, 1, S, S)."""
        present = self._present(batch.tile_sources)
        return self.augment.mask_views(_has_value(batch.tiles, present), batch.draws["crop"]) > 0.999

    def _count(self, batch: TileBatch, valid: Tensor) -> Tensor:
        return masked_pixels(valid, self._masks(batch), self.module.encoder.patch_size).sum()

    def evaluate(self, engine: ZeroEngine, tiles: Tensor, numbers: np.ndarray, sources: Tensor) -> Evaluation:
        views = self.augment.center_views(self.normalized(tiles, sources))
        masks = MaskedPatches(*to_device(self._draw_masks(numbers, "validation"), tiles.device))
        counted = None
        if self.ignore_nodata:
            counted = self.augment.center_views(_has_value(tiles, self._present(sources))) > 0.999
        bands = self._validation_bands(numbers, sources)
        losses, predictions, masked, _ = engine.evaluation(views, masks, counted, None, bands)
        errors = self.module.band_errors(views, masks, predictions, counted, bands)
        # clones, since slices would keep the whole batch in memory until the figure is drawn
        shown = (values[0].clone() for values in (views, predictions, masked, sources))
        return Evaluation(losses, partial(self._figure, *shown), errors)

    def _validation_bands(self, numbers: np.ndarray, sources: Tensor) -> ImageBands:
        hidden = None
        if self.mae.hides_bands:
            drawn = self._draw_hidden(numbers, sources.cpu().numpy(), "validation bands", group=1)
            hidden = to_device([drawn], sources.device)
        return self._image_bands(self.spectrum(sources), sources, hidden)

    def _present(self, sources: Tensor) -> Tensor | None:
        """Return which bands images of these sources have, bool (B, C); None where all have all."""
        return None if len(self.manifests) == 1 else self.tables.present[sources]

    def _figure(self, image: Tensor, prediction: Tensor, masked: Tensor, source: Tensor) -> "Figure":
        from pretrain.objectives.picture import reconstruction_figure  # matplotlib takes a second to load

        manifest = self.manifests[int(source)]
        bands = manifest.tile_shape[0]  # without those of wider sources
        prediction = prediction.unflatten(1, (-1, len(image)))[..., :bands].flatten(1)
        patches = self.module.reconstruct(image[:bands], prediction, masked)
        mu, sigma, scale = manifest.mu, manifest.sigma, manifest.scale
        truth, predicted = ((values.cpu().numpy() * sigma + mu) / scale for values in patches)
        return reconstruction_figure(
            truth,
            predicted,
            masked.cpu().numpy(),
            self.config.model.patch_size,
            sensor_of(manifest),
            "mean and spread of a predicted patch are the true patch's (norm_pix)" if self.module.norm_pix else "",
        )
