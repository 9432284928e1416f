"""Batches for training through the encoder: windows in random order, augmented, in micro batches per rank."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.config import FullConfig
from finetune.data.batches import epoch_order
from finetune.data.datasets import LabeledSplit, orient
from finetune.encoders.images import ImageInput
from finetune.losses.loss import Loss
from pretrain import distributed
from pretrain.data.augment import crop_box, resample, resampling
from pretrain.data.draws import to_device
from shards.errors import ConfigError
from shards.order.random_bits import fold_in, uniform


@dataclass(frozen=True)
class LabeledBatch:
    """A micro batch on this rank's device.

    Attributes:
        images: normalized, (B, C, S, S).
        labels: see LabeledSplit.
        samples: sample numbers in the training, (B,).
        weight: weight of its summed loss in the mean over the step, so that ranks count by their number of labels.
    """

    images: Tensor
    labels: Tensor
    samples: np.ndarray
    weight: float


class TrainingBatches:
    """Micro batches of a training, the same samples in the same order on any number of processes.

    Args:
        train: the training split.
        rows: windows of the split to train on.
        loss: determines the weight of a batch's labels.
        inputs: converts tiles to the encoder's input.
        recipe: batch size and augmentation.
        seed: seed of order and augmentation.
    """

    def __init__(
        self, train: LabeledSplit, rows: np.ndarray, loss: Loss, inputs: ImageInput, recipe: FullConfig, seed: int
    ) -> None:
        self.train, self.rows, self.loss, self.inputs, self.recipe, self.seed = train, rows, loss, inputs, recipe, seed
        self.micro, self.accumulation = cut_batch(recipe, distributed.world_size())
        self.steps_per_epoch = -(-len(train) // recipe.batch)  # a fraction takes as many steps as all tiles

    def from_step(self, step: int) -> Iterator[LabeledBatch]:
        """Yield this rank's micro batches from step ``step`` on, indefinitely."""
        while True:
            yield from self._of_step(step)
            step += 1

    def _of_step(self, step: int) -> Iterator[LabeledBatch]:
        world, batch = distributed.world_size(), self.recipe.batch
        rows, orientations = self._drawn(step)
        numbers = np.arange(step * batch, (step + 1) * batch)
        counted = self.loss.count(torch.from_numpy(self.train.labels[rows])) or 1
        begin = distributed.rank() * (batch // world)
        for first in range(begin, begin + batch // world, self.micro):
            part = slice(first, first + self.micro)
            images, labels = self._augmented(rows[part], orientations[part], numbers[part])
            yield LabeledBatch(images, labels, numbers[part], world * self.accumulation / counted)

    def _drawn(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows of a step and their orientations 0..7."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        repeat, batches = 0, list[tuple[np.ndarray, np.ndarray]]()
        while len(batches) <= batch:
            batches += epoch_order(len(self.rows), self.recipe.batch, self.seed, epoch * 100_000 + repeat)
            repeat += 1
        indices, orientations = batches[batch]
        return self.rows[indices], orientations

    def _augmented(self, rows: np.ndarray, orientations: np.ndarray, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        device, labels = distributed.device(), self.train.labels[rows]
        if self.loss.kind.is_dense:
            labels = np.stack(
                [orient(label, int(orientation)) for label, orientation in zip(labels, orientations, strict=True)]
            )
        tiles = torch.from_numpy(self.train.oriented(rows, orientations)).to(device)
        images, targets = self.inputs(tiles), torch.from_numpy(labels).to(device)
        if self.recipe.crop_scale is None:
            return images, targets
        draws = uniform(fold_in(self.seed, "crop"), numbers, 4)
        return crop_pairs(images, targets, draws, self.recipe.crop_scale)


def crop_pairs(images: Tensor, labels: Tensor, draws: np.ndarray, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Crop each image and resize the crop bilinearly; label maps get the same crop, by nearest neighbor.

    Args:
        images: float32 (B, C, S, S), normalized.
        labels: (B, S, S) or (B, T, S, S), or per-tile labels, which are returned unchanged.
        draws: (B, 4) in [0, 1): area, aspect, top, left.
        scale: range of the crop's area, as a fraction of the image.
    """
    size = images.shape[-1]
    boxes = np.array([crop_box(draw, size, size, size, scale) for draw in draws])
    still, sharp = np.zeros(len(boxes), bool), np.zeros(len(boxes))
    rows = resampling(boxes[:, 0], boxes[:, 2], size, size, still, sharp)
    columns = resampling(boxes[:, 1], boxes[:, 3], size, size, still, sharp)
    cropped = resample(images, *to_device((rows, columns), images.device))
    if labels.dim() < 3:
        return cropped, labels
    down, across = to_device((rows.argmax(-1), columns.argmax(-1)), labels.device)
    batch = torch.arange(len(labels), device=labels.device)[:, None, None]
    picked = labels.movedim((-2, -1), (1, 2))[batch, down[:, :, None], across[:, None, :]]
    return cropped, picked.movedim((1, 2), (-2, -1))


def cut_batch(recipe: FullConfig, world: int) -> tuple[int, int]:
    """Return micro batch and accumulation steps; raise ConfigError if they aren't integers."""
    if recipe.batch % world:
        raise ConfigError(f"key 'full.batch': {recipe.batch} is not a multiple of {world} processes")
    share = recipe.batch // world
    micro = min(recipe.micro_batch or share, share)
    if share % micro or micro % recipe.bn_group:
        raise ConfigError(
            f"key 'full.batch': {recipe.batch} on {world} processes are {share} samples each, not a multiple of "
            f"full.micro_batch {micro} in groups of full.bn_group {recipe.bn_group}"
        )
    return micro, share // micro
