"""Encoder, decoder and loss of masked autoencoding (MAE, arXiv 2111.06377)."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.kernels.launching import usable
from pretrain.models.attention import Backend
from pretrain.models.normalize import Normalizer
from pretrain.models.patches import gather_tokens, patchify
from pretrain.models.spectrum import Spectrum
from pretrain.models.vit import ViTEncoder
from pretrain.models.wave import WaveStem
from pretrain.objectives.image_bands import ALL_BANDS, ImageBands
from pretrain.objectives.mae_decoder import MaeDecoder
from pretrain.objectives.masked_loss import fused_errors, masked_targets, num_counted, squared_errors
from pretrain.objectives.masks import MaskedPatches, Masking, count_patches
from pretrain.objectives.objective import ObjectiveModule


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
        masking: what is hidden from the encoder.
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
        masking: Masking = "spatial",
    ) -> None:
        super().__init__()
        self.mask_ratio, self.norm_pix, self.spectral_angle = mask_ratio, norm_pix, spectral_angle
        self.decode_share = decode_share
        self.encoder = encoder
        self.masking = masking
        self.decoder = MaeDecoder(
            encoder.feature_dim,
            encoder.grid,
            encoder.patch_size**2,
            bands,
            decoder_width,
            decoder_depth,
            decoder_heads,
            backend,
            encoder.by_wavelength,
        )
        self.normalize = normalize

    @property
    def num_patches(self) -> int:
        """T, patches of an image."""
        return self.encoder.grid**2

    def count_patches(self) -> tuple[int, int]:
        """Count the visible and the decoded patches of an image in training."""
        return count_patches(self.num_patches, self.mask_ratio, self.decode_share, self.masking)

    def losses(
        self,
        images: Tensor,
        masks: MaskedPatches,
        valid: Tensor | None = None,
        terms: Tensor | None = None,
        bands: ImageBands = ALL_BANDS,
    ) -> tuple[Tensor, ...]:
        """Reconstruct the masked patches of images (B, C, H, W).

        Args:
            images: normalized, or int16 as tiles are: then only the patches that are used become float.
            masks: of each image.
            valid: bool (B, 1, H, W), pixels that count in the loss; None for all.
            terms: with ``valid``: number of pixels that a sample's loss is divided by; None for its own.
            bands: what the bands are, for several sources or encoders by wavelength.

        Returns:
            Loss of each sample, float32 (B,); prediction (B, M, p*p*C); grid ids of the masked patches (B, M); mean
            of each sample's visible tokens (B, D).
        """
        patches = patchify(images, self.encoder.patch_size)
        visible = self._floats(gather_tokens(patches, masks.visible), bands.sources)
        latent = self.encoder.tokens(visible, masks.visible, bands.seen)
        fused = usable(patches) and not self.spectral_angle  # the kernel has no angles
        truth = patches if fused else gather_tokens(patches, masks.masked)
        del patches
        prediction = self.decoder(latent, masks, self._wanted(bands))
        counted = None if valid is None else masked_pixels(valid, masks, self.encoder.patch_size)
        if fused:
            divisor = None if counted is None else num_counted(counted, terms)
            sources, wanted = bands.sources, self._targets(bands, len(images))
            tables = self.normalize, self.norm_pix, sources, wanted
            losses = fused_errors(prediction, truth, masks.masked, counted, divisor, *tables)
        else:
            losses = self._compare(prediction, truth, counted, terms, bands)
        return losses, prediction, masks.masked, latent[:, 1:].mean(1)

    def _targets(self, bands: ImageBands, batch: int) -> Tensor | None:
        """Return which bands are targets, float32 (B, C), or None for all: in one source, unless some are hidden."""
        return bands.targets(batch) if bands.sources is not None or self.masking == "spectral" else None

    def _wanted(self, bands: ImageBands) -> Spectrum | None:
        """Return what the decoder predicts: without a spectrum, an encoder by wavelength has one of its own."""
        if bands.wanted is not None or not self.encoder.by_wavelength:
            return bands.wanted
        return cast(WaveStem, self.encoder.stem).default

    def _compare(
        self, prediction: Tensor, truth: Tensor, counted: Tensor | None, terms: Tensor | None, bands: ImageBands
    ) -> Tensor:
        batch, patches, pixels, channels = truth.shape
        if counted is None:
            weight = truth.new_ones(1, 1, pixels, dtype=torch.float32) / (patches * pixels)
        else:
            weight = counted / num_counted(counted, terms).view(-1, 1, 1)
        sources, wanted = bands.sources, self._targets(bands, batch)
        if wanted is not None:  # a sample's loss is a mean over its own bands
            weight = weight * (channels / wanted.sum(1).clamp(min=1)).view(-1, 1, 1)

        def targets(part: slice) -> Tensor:
            counted_part = None if counted is None else counted[part]
            floats = self._floats(truth[part], None if sources is None else sources[part]).float()
            return masked_targets(floats, self.norm_pix, counted_part, None if wanted is None else wanted[part])

        losses = squared_errors(prediction, targets, weight)
        if self.spectral_angle:
            share = weight if wanted is None else weight * (wanted.sum(1) / channels).view(-1, 1, 1)
            angles = self._angles(prediction.view_as(truth), self._floats(truth, sources), sources, wanted)
            losses = losses + self.spectral_angle * (angles * share).flatten(1).sum(1)
        return losses

    @torch.no_grad()
    def band_errors(
        self, images: Tensor, masks: MaskedPatches, prediction: Tensor, valid: Tensor | None, bands: ImageBands
    ) -> Tensor:
        """Return the mean squared error of each band of each image, float32 (B, C), NaN for bands that are no targets.

        Args:
            images, masks, valid, bands: as in `losses`; images are normalized.
            prediction: of `losses`.
        """
        wanted = self._targets(bands, len(images))
        counted = None if valid is None else masked_pixels(valid, masks, self.encoder.patch_size)
        errors = []
        for number in range(len(images)):  # one at a time: differences are as large as the images
            part = slice(number, number + 1)
            truth = gather_tokens(patchify(images[part], self.encoder.patch_size), masks.masked[part]).float()
            weight = truth.new_ones(truth.shape[:3]) if counted is None else counted[part]
            own = None if wanted is None else wanted[part]
            target = masked_targets(truth, self.norm_pix, None if counted is None else weight, own).view_as(truth)
            squares = (prediction[part].float().view_as(truth) - target).square() * weight[..., None]
            mean = squares.sum((0, 1, 2)) / weight.sum()
            errors.append(mean if own is None else mean.masked_fill(own[0] == 0, torch.nan))
        return torch.stack(errors)

    def _floats(self, patches: Tensor, sources: Tensor | None = None) -> Tensor:
        """Normalize pixels of patches (B, ..., C) of the sources (B,)."""
        if patches.is_floating_point():
            return patches
        assert self.normalize is not None, "int16 images need a normalizer"
        return self.normalize.spectra(patches, sources)

    def _angles(
        self, prediction: Tensor, truth: Tensor, sources: Tensor | None = None, wanted: Tensor | None = None
    ) -> Tensor:
        """Compute angles in radians between spectra of digital numbers, (B, M, p*p) (Kruse et al. 1993).

        They are 2 atan2(|a - b|, |a + b|) of unit spectra a, b, which is precise and has a gradient at small angles.
        """
        assert self.normalize is not None, "spectral angles need a normalizer"
        mu, sigma = (table[..., None, None, :, 0, 0] for table in self.normalize.tables(sources))
        of_bands = 1.0 if wanted is None else wanted[:, None, None, :]
        a, b = (F.normalize((x.float() * sigma + mu) * of_bands, dim=-1) for x in (prediction, truth))
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


def masked_pixels(valid: Tensor, masks: MaskedPatches, patch_size: int) -> Tensor:
    """Map bool (B, 1, H, W) to float (B, M, p*p): 1 where a pixel of the masked patches counts."""
    return gather_tokens(patchify(valid.float(), patch_size), masks.masked)[..., 0]
