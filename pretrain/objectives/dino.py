"""DINO on hyperspectral tiles: self-distillation without labels (arXiv 2104.14294).

A student sees large and small crops of a location, of two dates where they exist; it is trained to predict the
distribution over prototypes that a teacher, its own average over training, assigns to the large crops. Centering
and a low teacher temperature prevent collapse. The center is updated once per optimizer step, by the mean over the
whole batch, so neither ranks nor accumulation change a loss.
"""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.config.objective import DinoConfig
from pretrain.data.augment import build_augmentation
from pretrain.data.draws import Draws
from pretrain.data.stream import TileBatch
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.zero import ZeroEngine
from pretrain.models.encoder import Encoder
from pretrain.models.flops import Parts, add, times
from pretrain.models.normalize import Normalizer
from pretrain.models.spectrum import Spectrum, joined
from pretrain.objectives.objective import (
    Evaluation,
    Objective,
    ObjectiveModule,
    build_module_encoder,
    feature_spread,
    recomputes_blocks,
)
from pretrain.weights.initial_weights import InitialWeights
from shards.format.manifest import Manifest
from shards.order.random_bits import fold_in


class Prototypes(nn.Module):
    """Cosine-like scores of unit vectors with prototypes of length 1 (weight norm whose gain is fixed)."""

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, inputs))

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """Map (B, inputs) to (B, count); with ``frozen`` no gradient reaches the prototypes."""
        weight = (
            self.weight.detach() + 0 * self.weight if frozen else self.weight
        )  # a gradient of zero: ZeRO waits for one
        return F.linear(x, F.normalize(weight, dim=1))


class DinoHead(nn.Module):
    """Three linear layers with GELUs to a bottleneck of unit length, then prototypes.

    Args:
        inputs, hidden, bottleneck, prototypes: widths.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last_layer = Prototypes(bottleneck, prototypes)

    def forward(self, features: Tensor, frozen: bool = False) -> Tensor:
        """Map (B, inputs) to logits (B, prototypes)."""
        x = self.layers(features.to(cast(nn.Linear, self.layers[0]).weight.dtype))
        return self.last_layer(F.normalize(x, dim=-1, eps=1e-6), frozen)

    def flops(self) -> int:
        """Operations of a forward on one image."""
        layers = sum(layer.weight.numel() for layer in self.layers if isinstance(layer, nn.Linear))
        return 2 * (layers + self.last_layer.weight.numel())


class DinoNetwork(nn.Module):
    """Encoder and head; the teacher is an average of both."""

    def __init__(self, encoder: Encoder, head: DinoHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        """Map normalized images (B, C, H, W) to logits (B, prototypes), float32."""
        features = self.encoder(images) if spectrum is None else self.encoder(images, "pooled", spectrum)
        return self.head(features).float()


class SelfDistillation(ObjectiveModule, DinoNetwork):
    """The student with its loss, and the center of the teacher's logits.

    Args:
        prototypes: of the head.
        temperature: of the student.
    """

    centre: Tensor

    def __init__(self, encoder: Encoder, head: DinoHead, prototypes: int, temperature: float) -> None:
        super().__init__(encoder, head)
        self.temperature = temperature
        self.register_buffer("centre", torch.zeros(prototypes))  # its name in checkpoints

    @property
    def center(self) -> Tensor:
        """Mean of the teacher's logits, (prototypes,)."""
        return self.centre

    def losses(
        self, crops: Sequence[Tensor], targets: Tensor, frozen: bool = False, spectra: Sequence[Spectrum] | None = None
    ) -> tuple[Tensor, ...]:
        """Compute the loss of the student's views against the teacher's distributions of the large ones.

        Args:
            crops: views of each size, (V * B, C, S, S), view after view, the large ones first.
            targets: the teacher's probabilities for the large views, (2, B, prototypes).
            frozen: keep the prototypes as they are.
            spectra: what the bands of the views of each size are, for encoders by wavelength.

        Returns:
            Loss of each sample, float32 (B,): the mean over all pairs of a teacher's view and another one of the
            student; pooled features of the large views (2 * B, D).
        """
        features = self.encoder(crops) if spectra is None else self.encoder(crops, "pooled", spectra)
        logits = self.head(features, frozen).float() / self.temperature
        batch = targets.shape[1]
        views = logits.log_softmax(-1).view(-1, batch, logits.shape[-1])
        losses = [
            -(target * view).sum(-1)
            for first, target in enumerate(targets)
            for second, view in enumerate(views)
            if first != second
        ]
        return torch.stack(losses).mean(0), features[: 2 * batch]


class DinoObjective(Objective):
    """DINO in a training run."""

    module: SelfDistillation
    momentum: MomentumNetwork
    timestamps = 2
    keeps_average = True

    def __init__(
        self,
        config: PretrainConfig,
        normalize: Normalizer,
        manifests: Sequence[Manifest],
        initial: InitialWeights | None = None,
    ) -> None:
        super().__init__(config, normalize, manifests, initial)
        self.dino = cast(DinoConfig, config.objective)
        local = self.dino.local_crops
        small = build_augmentation(config.augment, local.size, local.scale)
        self._augments = {f"view {number}": self.augment for number in (0, 1)}
        self._augments |= {f"local {number}": small for number in range(local.count)}
        self.momentum = MomentumNetwork(DinoNetwork(self.module.encoder, self.module.head))
        self._logits: list[Tensor] = []

    @classmethod
    def build_module(cls, config: PretrainConfig, bands: int, normalize: Normalizer | None = None) -> SelfDistillation:
        dino, encoder = cast(DinoConfig, config.objective), build_module_encoder(config, bands)
        head = DinoHead(encoder.feature_dim, dino.hidden, dino.bottleneck, dino.prototypes)
        return SelfDistillation(encoder, head, dino.prototypes, dino.student_temperature)

    @classmethod
    def flops(cls, module: SelfDistillation, config: PretrainConfig, bands: int) -> Parts:
        """Operations of the student on all views, forward and backward, and of the teacher on the large ones."""
        size, local = config.model.image_size, cast(DinoConfig, config.objective).local_crops
        large = add(module.encoder.training_flops(bands, size), module.encoder.flops(bands, size))
        small = module.encoder.training_flops(bands, local.size)
        head = (3 * (2 + local.count) + 2) * module.head.flops()
        return add(times(2, large), times(local.count, small)) | {"head": head}

    @classmethod
    def recomputed_flops(cls, module: SelfDistillation, config: PretrainConfig, bands: int) -> int:
        local, checkpointing = cast(DinoConfig, config.objective).local_crops, recomputes_blocks(config)
        large = module.encoder.recomputed_flops(bands, config.model.image_size, checkpointing=checkpointing)
        small = module.encoder.recomputed_flops(bands, local.size, checkpointing=checkpointing)
        return 2 * large + local.count * small

    def draws(self, samples: np.ndarray, sources: np.ndarray) -> Draws:
        drawn = {name: self.draw_views(augment, samples, sources, name) for name, augment in self._augments.items()}
        for name in self._augments:
            drawn |= self.draw_sensors(samples, sources, name)
        return drawn

    def loss(self, engine: ZeroEngine, batch: TileBatch, step: int) -> Tensor:
        images = self.normalized(batch.tiles, batch.tile_sources)
        large = torch.cat([self._view(images, batch, f"view {number}", number) for number in (0, 1)])
        small = [
            self._view(images, batch, f"local {number}", number % 2) for number in range(self.dino.local_crops.count)
        ]
        spectra = self._spectra(batch)
        logits = self.momentum(engine, large, None if spectra is None else spectra[0])
        self._logits.append(logits.mean(0))
        targets = self._targets(engine, logits, step)
        crops = [large, torch.cat(small)] if small else [large]
        losses, features = engine(crops, targets, step < self.dino.freeze_last_layer_steps, spectra)
        self.scalars.add(feature_std=feature_spread(features), teacher_entropy=_entropy(targets))
        return self.mean_loss(losses, batch)

    def _view(self, images: Tensor, batch: TileBatch, name: str, timestamp: int) -> Tensor:
        return self._augments[name].views(images[batch.rows[:, timestamp]], batch.draws[name])

    def _spectra(self, batch: TileBatch) -> list[Spectrum] | None:
        """Return what the bands of the large and of the small views are, for encoders by wavelength."""
        views = [self.seen_spectrum(batch, name) for name in self._augments]
        spectra = [joined(views[:2]), joined(views[2:])] if len(views) > 2 else [joined(views)]
        known = [spectrum for spectrum in spectra if spectrum is not None]
        return known or None

    def _targets(self, engine: ZeroEngine, logits: Tensor, step: int) -> Tensor:
        """Compute the teacher's probabilities (2, B, prototypes) from logits of the large views (2 * B, prototypes)."""
        center = cast(SelfDistillation, engine.module).center.float()
        return ((logits - center) / self.teacher_temperature(step)).softmax(-1).view(2, -1, logits.shape[-1])

    def teacher_temperature(self, step: int) -> float:
        """Return the temperature of a step: linear from the first to the final one, then constant."""
        first, final = self.dino.teacher_temperature, self.dino.final_teacher_temperature
        share = min(1.0, step / max(self.dino.warmup_temperature_steps, 1))
        return first + (final - first) * share if self.dino.warmup_temperature_steps else final

    def teacher_momentum(self, step: int) -> float:
        """Return the momentum of a step: a cosine from ``momentum`` to 1 over the training."""
        return 1 - (1 - self.dino.momentum) * (math.cos(math.pi * step / self.steps) + 1) / 2

    def after_step(self, engine: ZeroEngine, step: int) -> None:
        self.momentum.update(engine, self.teacher_momentum(step))
        mean = distributed.all_reduce_sum(torch.stack(self._logits).mean(0)) / distributed.world_size()
        self._logits = []
        center = cast(SelfDistillation, engine.module).center
        moved = torch.where(center.any(), 1 - self.dino.center_momentum, 1.0)  # the first mean is used unchanged
        center.lerp_(mean.to(center.dtype), moved.to(center.dtype))

    def drop_step(self) -> None:
        super().drop_step()
        self._logits = []

    def evaluate(self, engine: ZeroEngine, tiles: Tensor, numbers: np.ndarray, sources: Tensor) -> Evaluation:
        images = self.normalized(tiles, sources)
        large = torch.cat(
            [
                self.augment.random_views(images, numbers, fold_in(self.seed, f"validation view {view}"))
                for view in (0, 1)
            ]
        )
        with self.momentum.evaluating():
            spectrum = joined([self.spectrum(sources)] * 2)
            logits = self.momentum(engine, large, spectrum)
        spectra = None if spectrum is None else [spectrum]
        losses, _ = engine.evaluation([large], self._targets(engine, logits, self.steps), False, spectra)
        return Evaluation(losses)

    @torch.no_grad()
    def features(self, engine: ZeroEngine, images: Tensor, sources: Tensor) -> Tensor:
        """Compute them by the teacher, whose encoder DINO exports."""
        with self.momentum.evaluating(), engine.forward_context():
            spectrum = self.spectrum(sources)
            return cast(Encoder, self.momentum.module.encoder)(images, "map", *([] if spectrum is None else [spectrum]))


def _entropy(probabilities: Tensor) -> Tensor:
    """Compute the mean entropy over samples, as a share of the uniform distribution's: 1 and 0 are both collapse."""
    entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1).mean()
    return entropy / math.log(probabilities.shape[-1])
