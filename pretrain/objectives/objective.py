"""The interface of objectives: losses of micro batches, and what follows an optimizer step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.augment import Augmentation, build_augmentation
from pretrain.data.band_tables import BandTables, padded
from pretrain.data.draws import Draws
from pretrain.data.made_sensors import draw_sensors, made_spectrum
from pretrain.data.stream import TileBatch
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.zero import ZeroEngine, move_batch_norms
from pretrain.models.encoder import Encoder
from pretrain.models.flops import Parts, times
from pretrain.models.initialize import initialize
from pretrain.models.normalize import Normalizer
from pretrain.models.registry import build_encoder
from pretrain.models.spectrum import Spectrum
from pretrain.models.stem import set_stem_kernel
from pretrain.objectives.source_losses import SourceLosses
from pretrain.weights.initial_weights import InitialWeights
from shards.format.manifest import Manifest
from shards.order.random_bits import fold_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Evaluation:
    """Losses of held-out tiles.

    Attributes:
        losses: (B,).
        figure: how to draw the first tile, where the objective has a picture.
        band_errors: mean squared error of each tile's bands, (B, C), NaN where a band has no target; None where the
            objective predicts no bands.
    """

    losses: Tensor
    figure: "Callable[[], Figure] | None" = None
    band_errors: Tensor | None = None


class ObjectiveModule(nn.Module):
    """Networks and loss of an objective: what the engine trains.

    Under ZeRO the engine's call is the only way to the weights, so the module's methods are entered through forward.

    Attributes:
        encoder: what is exported.
    """

    encoder: Encoder

    def forward(self, *inputs: Any, entry: str = "losses") -> Any:
        """Call the method ``entry``: ``losses`` in training steps and validation, or ``feature_map``."""
        return getattr(self, entry)(*inputs)

    def losses(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Compute the loss of each sample, float32 (B,), and what else the objective needs of a forward."""
        raise NotImplementedError

    def feature_map(self, images: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        """Compute the encoder's feature map (B, D, h, w) of normalized images (B, C, H, W)."""
        return self.encoder(images, "map") if spectrum is None else self.encoder(images, "map", spectrum)


class Objective(ABC):
    """One objective in one run, registered in ``pretrain.registries.OBJECTIVES``.

    Args:
        config: of the run.
        normalize: digital numbers to z-scores, on the device.
        manifests: of the sources, in their order.
        initial: weights to begin from; None draws them from the run's seed.

    Attributes:
        module: what the engine trains.
        momentum: an average of the module's networks, or None.
        scalars: what is logged besides the loss.
        source_losses: losses by source.
        tables: bands and statistics of the sources.
        tile_shape: (C, H, W) that holds a tile of any source.
        tile_shapes: (C, H, W) of each source's tiles, int64 (S, 3).
        timestamps: tiles of each sample, 1 or 2 dates of its location.
        keeps_average: whether it has a momentum network.
    """

    module: ObjectiveModule
    momentum: MomentumNetwork | None = None
    timestamps: ClassVar[Literal[1, 2]] = 1
    keeps_average: ClassVar[bool] = False

    def __init__(
        self,
        config: PretrainConfig,
        normalize: Normalizer,
        manifests: Sequence[Manifest],
        initial: InitialWeights | None = None,
    ) -> None:
        self.config, self.normalize, self.manifests, self.initial = config, normalize, manifests, initial
        self.tables = BandTables.of(manifests).to(distributed.device())
        self._centers, self._widths = padded(manifests, "wavelength_nm"), padded(manifests, "fwhm_nm")
        self.tile_shapes = np.asarray([manifest.tile_shape for manifest in manifests])
        self.tile_shape = tuple(self.tile_shapes.max(0).tolist())
        self.seed, self.steps = config.run.seed, config.train.steps
        self.augment = build_augmentation(config.augment, config.model.image_size)
        self.scalars, self.source_losses = Scalars(), SourceLosses(len(manifests))
        self.module = self.build_module(config, self.tile_shape[0], normalize)
        set_stem_kernel(self.module, config.engine.stem_kernel, distributed.device())  # momentum networks copy it
        self._fill(self.module)

    @classmethod
    @abstractmethod
    def build_module(cls, config: PretrainConfig, bands: int, normalize: Normalizer | None = None) -> ObjectiveModule:
        """Build what the engine trains, without contents.

        Args:
            bands: C.
            normalize: for modules that take int16 images.
        """

    @classmethod
    def flops(cls, module: Any, config: PretrainConfig, bands: int) -> Parts:
        """Operations of one sample's share of a training step, by part: ``stem``, ``decoder`` and others.

        Args:
            module: of `build_module`, on any device.
            bands: C.
        """
        return times(cls.timestamps, module.encoder.training_flops(bands, config.model.image_size))

    @classmethod
    def recomputed_flops(cls, module: Any, config: PretrainConfig, bands: int) -> int:
        """Operations of one sample that the backward pass repeats."""
        return cls.timestamps * module.encoder.recomputed_flops(
            bands, config.model.image_size, checkpointing=recomputes_blocks(config)
        )

    def _fill(self, module: nn.Module) -> None:
        """Set the networks' first weights, before they are copied or partitioned."""
        initialize(module, "pretrain", self.seed)
        if self.initial is not None:
            self.initial.put_into(module, self.config.objective.name)

    def draws(self, samples: np.ndarray, sources: np.ndarray) -> Draws:
        """Return the random draws of a micro batch, which `loss` finds on the device in ``batch.draws``.

        It is called in the thread that reads tiles, so it depends on the seed and its arguments alone: sample numbers
        (B,), and the source of each sample (B,).
        """
        return {}

    def draw_views(
        self, augment: Augmentation, samples: np.ndarray, sources: np.ndarray, *name: str | int
    ) -> tuple[np.ndarray, ...]:
        """Draw one view of each sample within its own tile; ``name`` tells the views of a sample apart."""
        return augment.draw_each(samples, fold_in(self.seed, *name), self.tile_shapes[sources], self.tile_shape)

    def normalized(self, tiles: Tensor, sources: Tensor) -> Tensor:
        """Normalize int16 tiles (U, C, H, W), of the sources (U,), that views are resampled from.

        Half precision on GPUs is fp16, unless the run's is fp32: it has three more bits than bf16.
        """
        half = tiles.is_cuda and self.config.engine.precision != "fp32"
        return self.normalize(tiles, torch.float16 if half else torch.float32, sources)

    def spectrum(self, sources: Tensor, group: int = 1) -> Spectrum | None:
        """Return the bands of images for encoders by wavelength; None for others.

        Args:
            sources: of the images, int64 (B,); those of ``group`` consecutive ones are equal.
        """
        if not self.module.encoder.by_wavelength:
            return None
        chosen = slice(None) if len(self.manifests) == 1 else sources[::group]
        return Spectrum(self.tables.center_nm[chosen], self.tables.fwhm_nm[chosen])

    def draw_sensors(self, samples: np.ndarray, sources: np.ndarray, view: str) -> Draws:
        """Draw the sensors of a view's groups under ``sensors VIEW``; nothing without ``augment.sensors``."""
        config, group = self.config.augment.sensors, self.config.model.bn_group
        if config is None:
            return {}
        bands = self.group_bands(sources, group)
        return {f"sensors {view}": draw_sensors(config, samples[::group], fold_in(self.seed, "sensors", view), *bands)}

    def group_bands(self, sources: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return centers and widths of the bands of each group of samples, float32 (G, C)."""
        chosen = sources[::group]
        return self._centers[chosen], self._widths[chosen]

    def seen_spectrum(self, batch: TileBatch, view: str) -> Spectrum | None:
        """Return what the encoder sees of a view's bands, by groups of samples; None for encoders of fixed bands."""
        bands = self.spectrum(batch.sources, self.config.model.bn_group)
        drawn = batch.draws.get(f"sensors {view}")
        return bands if bands is None or drawn is None else made_spectrum(bands, *drawn)

    def losses(self, engine: ZeroEngine, batches: Iterator[TileBatch], step: int) -> Iterator[Tensor]:
        """Yield the mean loss of each micro batch of an optimizer step (0, 1, ...)."""
        for _ in range(engine.accumulation):
            yield self.loss(engine, next(batches), step)

    @abstractmethod
    def loss(self, engine: ZeroEngine, batch: TileBatch, step: int) -> Tensor:
        """Compute the mean loss of one micro batch: a forward of the engine on random views."""

    def mean_loss(self, losses: Tensor, batch: TileBatch) -> Tensor:
        """Return the mean of the losses (B,) of a micro batch, and record them by source if there are several."""
        if len(self.manifests) > 1:
            self.source_losses.add(losses, batch.sources)
        return losses.mean()

    def after_step(self, engine: ZeroEngine, step: int) -> None:  # noqa: B027  # most have nothing to do
        """Follow the weights after optimizer step ``step``; every rank calls it."""

    def drop_step(self) -> None:
        """Discard what the micro batches of a step that was not applied have left."""
        self.scalars.reset()
        self.source_losses.reset()
        if self.momentum is not None:
            move_batch_norms(self.momentum.module, applied=False)

    @abstractmethod
    def evaluate(self, engine: ZeroEngine, tiles: Tensor, numbers: np.ndarray, sources: Tensor) -> Evaluation:
        """Compute losses of held-out tiles, int16 (B, C, H, W), on views and masks fixed by their ``numbers`` (B,).

        Args:
            sources: of the tiles, int64 (B,).
        """

    def features(self, engine: ZeroEngine, images: Tensor, sources: Tensor) -> Tensor:
        """Compute the feature map (B, D, h, w) of normalized images by the encoder that will be exported.

        Args:
            sources: of the images, int64 (B,).
        """
        return engine.evaluation(images, self.spectrum(sources), entry="feature_map")


def build_module_encoder(config: PretrainConfig, bands: int) -> Encoder:
    """Build the config's encoder, without contents."""
    return build_encoder(**config.model.model_dump(), bands=bands)


def recomputes_blocks(config: PretrainConfig) -> bool:
    """Return whether activation checkpointing recomputes whole blocks."""
    return config.engine.activation_checkpointing == "blocks"


class Scalars:
    """Means over micro batches and ranks of what objectives log."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, **values: Tensor) -> None:
        """Add the scalars of one micro batch, the same names each time."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value, dtype=torch.float32)) + value.detach()
        self._count += 1

    def flush(self) -> dict[str, float]:
        """Return the means since the last call; every rank calls it."""
        if not self._count:
            return {}
        means = distributed.all_reduce_sum(torch.stack(list(self._sums.values())) / self._count)
        with distributed.reading():
            result = dict(zip(self._sums, (means / distributed.world_size()).tolist(), strict=True))
        self.reset()
        return result

    def reset(self) -> None:
        """Discard all."""
        self._sums, self._count = {}, 0


def feature_spread(features: Tensor) -> Tensor:
    """Measure how far features (B, D) are from collapse: 1 for isotropic directions, 0 where all agree.

    The standard deviation of the L2-normalized features over the batch, times sqrt(D) (SimSiam, arXiv 2011.10566).
    """
    unit = nn.functional.normalize(features.detach().float(), dim=-1)
    return unit.std(0, unbiased=False).mean() * unit.shape[-1] ** 0.5
