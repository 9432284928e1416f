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
from torch.nn import functional as F

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.config.objective import MaeConfig
from pretrain.data.draws import Draws, to_device
from pretrain.data.stream import TileBatch
from pretrain.engine.zero import ZeroEngine
from pretrain.kernels.launching import usable
from pretrain.models.attention import Backend
from pretrain.models.flops import Parts
from pretrain.models.normalize import Normalizer
from pretrain.models.patches import gather_tokens, patchify
from pretrain.models.vit import ViTEncoder
from pretrain.objectives.mae_decoder import MaeDecoder
from pretrain.objectives.masked_loss import fused_errors, masked_targets, num_counted, squared_errors
from pretrain.objectives.masks import MaskedPatches, choose_masks, count_patches, mask_noise
from pretrain.objectives.objective import (
    Evaluation,
    Objective,
    ObjectiveModule,
    build_module_encoder,
    feature_spread,
    recomputes_blocks,
)
from pretrain.weights.initial_weights import InitialWeights
from shards.format.manifest import Manifest, sensor_of
from shards.sensors.sensor import NODATA

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MaskedAutoencoder(ObjectiveModule):
    """Encoder, decoder and loss.

    Args:
        encoder: its positions should be fixed (``encoder.core.fix_positions()``) for training.
        bands: C.
        mask_ratio: share of patches that are masked.
        norm_pix: normalize the target per patch.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        spectral_angle: weight of the mean angle between predicted and true spectra, 0 for none.
        normalize: of int16 images; spectral angles are taken between digital numbers.
        decode_share: share of the masked patches that are predicted in training.
    """

    encoder: ViTEncoder

    def __init__(
        self,
        encoder: ViTEncoder,
        bands: int,
        mask_ratio: float = 0.9,
        norm_pix: bool = True,
        decoder_width: int = 512,
        decoder_depth: int = 1,
        decoder_heads: int = 16,
        backend: Backend = "auto",
        spectral_angle: float = 0.0,
        normalize: Normalizer | None = None,
        decode_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.mask_ratio, self.norm_pix, self.spectral_angle = mask_ratio, norm_pix, spectral_angle
        self.decode_share = decode_share
        self.encoder = encoder
        outputs = encoder.patch_size**2 * bands
        self.decoder = MaeDecoder(
            encoder.feature_dim, encoder.grid, outputs, decoder_width, decoder_depth, decoder_heads, backend
        )
        self.normalize = normalize

    @property
    def num_patches(self) -> int:
        """T, patches of an image."""
        return self.encoder.grid**2

    def count_patches(self) -> tuple[int, int]:
        """Count the visible and the decoded patches of an image in training."""
        return count_patches(self.num_patches, self.mask_ratio, self.decode_share)

    def losses(
        self, images: Tensor, masks: MaskedPatches, valid: Tensor | None = None, terms: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Reconstruct the masked patches of images (B, C, H, W).

        Args:
            images: normalized, or int16 as tiles are: then only the patches that are used become float.
            masks: of each image.
            valid: bool (B, 1, H, W), pixels that count in the loss; None for all.
            terms: with ``valid``: number of pixels that a sample's loss is divided by; None for its own.

        Returns:
            Loss of each sample, float32 (B,); prediction (B, M, p*p*C); grid ids of the masked patches (B, M); mean
            of each sample's visible tokens (B, D).
        """
        patches = patchify(images, self.encoder.patch_size)
        latent = self.encoder.tokens(self._floats(gather_tokens(patches, masks.visible)), masks.visible)
        fused = usable(patches) and not self.spectral_angle  # the kernel has no angles
        truth = patches if fused else gather_tokens(patches, masks.masked)
        del patches
        prediction = self.decoder(latent, masks)
        counted = None if valid is None else _masked_pixels(valid, masks, self.encoder.patch_size)
        if fused:
            divisor = None if counted is None else num_counted(counted, terms)
            losses = fused_errors(prediction, truth, masks.masked, counted, divisor, self.normalize, self.norm_pix)
        else:
            losses = self._compare(prediction, truth, counted, terms)
        return losses, prediction, masks.masked, latent[:, 1:].mean(1)

    def _compare(self, prediction: Tensor, truth: Tensor, counted: Tensor | None, terms: Tensor | None) -> Tensor:
        _, patches, pixels, _ = truth.shape
        if counted is None:
            weight = truth.new_ones(1, 1, pixels, dtype=torch.float32) / (patches * pixels)
        else:
            weight = counted / num_counted(counted, terms).view(-1, 1, 1)

        def targets(part: slice) -> Tensor:
            counted_part = None if counted is None else counted[part]
            return masked_targets(self._floats(truth[part]).float(), self.norm_pix, counted_part)

        losses = squared_errors(prediction, targets, weight)
        if self.spectral_angle:
            angles = self._angles(prediction.view_as(truth), self._floats(truth))
            losses = losses + self.spectral_angle * (angles * weight).flatten(1).sum(1)
        return losses

    def _floats(self, patches: Tensor) -> Tensor:
        """Normalize pixels of patches (..., C)."""
        if patches.is_floating_point():
            return patches
        assert self.normalize is not None, "int16 images need a normalizer"
        return self.normalize.spectra(patches)

    def _angles(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Compute angles in radians between spectra of digital numbers, (B, M, p*p) (Kruse et al. 1993).

        They are 2 atan2(|a - b|, |a + b|) of unit spectra a, b, which is precise and has a gradient at small angles.
        """
        assert self.normalize is not None, "spectral angles need a normalizer"
        mu, sigma = self.normalize.mu.flatten(), self.normalize.sigma.flatten()
        a, b = (F.normalize(x.float() * sigma + mu, dim=-1) for x in (prediction, truth))
        return 2 * torch.atan2(_length(a - b), _length(a + b))

    def reconstruct(self, image: Tensor, prediction: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches of one normalized image (C, H, W), true and predicted, each (T, p*p, C).

        Where targets were normalized per patch, the prediction takes the mean and deviation of the true patch, as usual
        for pictures: it shows the predicted shape, not the level. No weights are used.
        """
        truth = patchify(image[None].float(), self.encoder.patch_size)[0]
        predicted = truth.clone()
        hidden = prediction.float().view(len(masked), *truth.shape[1:])
        if self.norm_pix:
            variance, mean = torch.var_mean(truth[masked].flatten(1), -1, keepdim=True)
            hidden = hidden * (variance + 1e-6).sqrt()[..., None] + mean[..., None]
        predicted[masked] = hidden
        return truth, predicted


def _length(x: Tensor) -> Tensor:
    return (x.square().sum(-1) + 1e-12).sqrt()  # its gradient is finite at 0


def _has_value(tiles: Tensor) -> Tensor:
    """Map int16 (B, C, H, W) to float (B, 1, H, W): 1 where a pixel has all bands."""
    return (tiles.amin(1, keepdim=True) > NODATA).float()  # the smallest int16: a single pass over the tiles


def _held(batches: Iterator[TileBatch], count: int) -> Iterator[TileBatch]:
    """Yield some batches that stay valid together: the next one ends the validity of a batch, unless it is a copy."""
    for number in range(count):
        batch = next(batches)
        yield batch if number == count - 1 else replace(batch, tiles=batch.tiles.clone())


def _masked_pixels(valid: Tensor, masks: MaskedPatches, patch_size: int) -> Tensor:
    """Map bool (B, 1, H, W) to float (B, M, p*p): 1 where a pixel of the masked patches counts."""
    return gather_tokens(patchify(valid.float(), patch_size), masks.masked)[..., 0]


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
        self.ignore_nodata = cast(MaeConfig, config.objective).ignore_nodata

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
        return {
            "crop": self.draw_views(self.augment, samples, sources, "crop"),
            "masks": self._draw_masks(samples, "mask", self.module.decode_share),
        }

    def _draw_masks(self, samples: np.ndarray, name: str, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        noise = mask_noise(samples, self.seed, self.module.num_patches, name)
        return choose_masks(noise, self.module.mask_ratio, share)

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
        losses, _, _, features = engine(self._images(batch), self._masks(batch), *valid_and_terms)
        self.scalars.add(feature_std=feature_spread(features))
        return self.mean_loss(losses, batch)

    def _images(self, batch: TileBatch) -> Tensor:
        """Return the crops (B, C, S, S): int16, or normalized if they are resampled."""
        tiles = self.normalized(batch.tiles, batch.tile_sources) if self.augment.resamples else batch.tiles
        return self.augment.views(tiles, batch.draws["crop"])

    def _masks(self, batch: TileBatch) -> MaskedPatches:
        return MaskedPatches(*batch.draws["masks"])

    def _valid(self, batch: TileBatch) -> Tensor:
        """Return which pixels of the crops have a value, bool (B, 1, S, S)."""
        return self.augment.mask_views(_has_value(batch.tiles), batch.draws["crop"]) > 0.999

    def _count(self, batch: TileBatch, valid: Tensor) -> Tensor:
        return _masked_pixels(valid, self._masks(batch), self.module.encoder.patch_size).sum()

    def evaluate(self, engine: ZeroEngine, tiles: Tensor, numbers: np.ndarray, sources: Tensor) -> Evaluation:
        views = self.augment.center_views(self.normalized(tiles, sources))
        masks = MaskedPatches(*to_device(self._draw_masks(numbers, "validation"), tiles.device))
        valid = [self.augment.center_views(_has_value(tiles)) > 0.999] if self.ignore_nodata else []
        losses, predictions, masked, _ = engine.evaluation(views, masks, *valid)
        # clones, since slices would keep the whole batch in memory until the figure is drawn
        shown = (values[0].clone() for values in (views, predictions, masked, sources))
        return Evaluation(losses, partial(self._figure, *shown))

    def _figure(self, image: Tensor, prediction: Tensor, masked: Tensor, source: Tensor) -> "Figure":
        from pretrain.objectives.picture import reconstruction_figure  # matplotlib takes a second to load

        patches = self.module.reconstruct(image, prediction, masked)
        manifest = self.manifests[int(source)]
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
