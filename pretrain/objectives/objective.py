"""What the training loop asks of an objective: losses of micro batches, and what follows an optimizer step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.augment import build_augmentation
from pretrain.data.stream import TileBatch
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.zero import ZeroEngine, move_batch_norms
from pretrain.models.encoder import Encoder
from pretrain.models.initialize import initialize
from pretrain.models.normalize import Normalizer
from pretrain.models.registry import build_encoder
from pretrain.weights.initial_weights import InitialWeights
from shards.format.manifest import Manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Evaluation:
    """Losses (B,) of held-out tiles, and how to draw the first of them, where the objective has a picture."""

    losses: Tensor
    figure: "Callable[[], Figure] | None" = None


class Objective(ABC):
    """One objective in one run.

    Args:
        config: of the run.
        normalize: digital numbers to z-scores, on the device.
        manifest: of the shards.
        initial: weights to begin from; None draws them from the run's seed.

    Attributes:
        module: encoder, heads and loss: what the engine trains. Called with images alone, it gives the encoder's
            feature map: under ZeRO the one way to its weights is the engine's.
        momentum: an average of the module's networks, or None.
        timestamps: tiles of each sample, 1 or 2 dates of its location.
        scalars: what is watched besides the loss.
    """

    module: nn.Module
    momentum: MomentumNetwork | None = None
    timestamps: Literal[1, 2] = 1

    def __init__(
        self, config: PretrainConfig, normalize: Normalizer, manifest: Manifest, initial: InitialWeights | None = None
    ) -> None:
        self.config, self.normalize, self.manifest, self.initial = config, normalize, manifest, initial
        self.seed, self.steps = config.run.seed, config.train.steps
        self.augment = build_augmentation(config.augment, config.model.image_size)
        self.scalars = Scalars()

    def build_encoder(self) -> Encoder:
        """Build the config's encoder for the shards' bands, without contents yet."""
        return build_encoder(**self.config.model.model_dump(), bands=self.manifest.tile_shape[0])

    def fill(self, module: nn.Module) -> None:
        """Give the networks their first weights, before they are copied or shared."""
        initialize(module, "pretrain", self.seed)
        if self.initial is not None:
            self.initial.put_into(module, self.config.objective.name)

    def losses(self, engine: ZeroEngine, batches: Iterator[TileBatch], step: int) -> Iterator[Tensor]:
        """Lazily the mean loss of each micro batch of an optimizer step (0, 1, ...)."""
        for _ in range(engine.accumulation):
            yield self.loss(engine, next(batches), step)

    @abstractmethod
    def loss(self, engine: ZeroEngine, batch: TileBatch, step: int) -> Tensor:
        """Mean loss of one micro batch: a forward of the engine on random views."""

    def after_step(self, engine: ZeroEngine, step: int) -> None:  # noqa: B027  # most have nothing to do
        """Follow the weights after optimizer step ``step``; every rank calls it."""

    def drop_step(self) -> None:
        """Forget what the micro batches of a step that was not applied have left."""
        self.scalars.drop()
        if self.momentum is not None:
            move_batch_norms(self.momentum.module, applied=False)

    @abstractmethod
    def evaluate(self, engine: ZeroEngine, tiles: Tensor, numbers: np.ndarray) -> Evaluation:
        """Losses of held-out tiles, int16 (B, C, H, W), on views and masks fixed by their ``numbers`` (B,)."""

    def features(self, engine: ZeroEngine, images: Tensor) -> Tensor:
        """Feature map (B, D, h, w) of normalized images by the encoder that will be exported, in evaluation mode."""
        return engine.evaluation(images)


class Scalars:
    """Means over micro batches and ranks of what objectives watch."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, **values: Tensor) -> None:
        """Take in the scalars of one micro batch, the same names each time."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value, dtype=torch.float32)) + value.detach()
        self._count += 1

    def take(self) -> dict[str, float]:
        """The means since the last call; every rank calls it."""
        if not self._count:
            return {}
        means = distributed.all_reduce_sum(torch.stack(list(self._sums.values())) / self._count)
        result = dict(zip(self._sums, (means / distributed.world_size()).tolist(), strict=True))
        self.drop()
        return result

    def drop(self) -> None:
        """Begin anew."""
        self._sums, self._count = {}, 0


def feature_spread(features: Tensor) -> Tensor:
    """How far a batch's features (B, D) are from collapse: 1 where their directions are isotropic, 0 where all agree.

    The standard deviation of the L2-normalized features over the batch, times sqrt(D) (SimSiam, arXiv 2011.10566).
    """
    unit = nn.functional.normalize(features.detach().float(), dim=-1)
    return unit.std(0, unbiased=False).mean() * unit.shape[-1] ** 0.5
