"""Frozen protocol: a head trained on cached features, at several learning rates."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.config import FrozenConfig
from finetune.heads import ConvHead, predict_classes, segmentation_loss
from finetune.metrics import SegmentationMetrics, SegmentationScores
from finetune.tasks import Task
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.initialise import initialise
from pretrain.optim import build_adamw
from pretrain.schedules import warmup_cosine
from shards import keyed

MAPS = 4
"""Windows that are drawn."""


@dataclass(frozen=True)
class FeatureSplit:
    """Features (N, D, g, g) float32 and labels (N, S, S) int64, both on the training device."""

    features: Tensor
    labels: Tensor


def map_rows(length: int) -> np.ndarray:
    """Rows of the windows that are drawn, spread over a split of ``length`` windows."""
    return np.unique(np.linspace(0, length - 1, MAPS + 2)[1:-1].astype(np.int64))


@dataclass(frozen=True)
class Outcome:
    """Test scores at the step of the best validation loss, and what was chosen there.

    ``maps``: the classes predicted for the test windows of ``map_rows``, int64 (n, S, S).
    """

    test: SegmentationScores
    validation: SegmentationScores
    lr: float
    step: int
    maps: np.ndarray


def probe(splits: dict[str, FeatureSplit], task: Task, stride: int, config: FrozenConfig, seed: int) -> Outcome:
    """Train one head per learning rate; the best validation loss over rates and steps is tested."""
    outcomes = [_train_head(splits, task, stride, config, lr, seed) for lr in config.lrs]
    return min(outcomes, key=lambda outcome: outcome.validation.loss)


def _train_head(
    splits: dict[str, FeatureSplit], task: Task, stride: int, config: FrozenConfig, lr: float, seed: int
) -> Outcome:
    train = splits["train"]
    head = ConvHead(train.features.shape[1], len(task.classes), stride, bn_group=None)
    initialise(head, "head", seed)
    head.to(train.features.device)
    optimizer = build_adamw(head, lr, (0.9, 0.999), config.weight_decay)
    best: Outcome | None = None
    for step in range(config.steps):
        head.train()
        rows = torch.from_numpy(batch_rows(step, config.batch, len(train.labels), seed)).to(train.labels.device)
        labels = train.labels[rows]
        counted = (labels != task.ignore_index).sum().clamp(min=1)
        loss = segmentation_loss(head(train.features[rows]), labels, task.ignore_index) / counted
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, config.steps, 0, lr, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for norm in grouped_batch_norms(head):
            norm.move(norm.take_pending())
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            validation, _ = _evaluate(head, splits["val"], task)
            if best is None or validation.loss < best.validation.loss:
                test, maps = _evaluate(head, splits["test"], task)
                best = Outcome(test, validation, lr, step + 1, maps)
    assert best is not None  # config.steps is positive
    return best


def batch_rows(step: int, batch: int, length: int, seed: int) -> np.ndarray:
    """Rows of one step: an order per epoch drawn from the seed, batches running on over its end."""
    numbers = np.arange(step * batch, (step + 1) * batch)
    rows = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(numbers // length):
        here = numbers // length == epoch
        rows[here] = keyed.permute(keyed.key(seed, "finetune", int(epoch)), length, numbers[here] % length)
    return rows


def _evaluate(head: ConvHead, split: FeatureSplit, task: Task) -> tuple[SegmentationScores, np.ndarray]:
    head.eval()
    maps = []
    metrics = SegmentationMetrics(len(task.classes), task.ignore_index, split.labels.device)
    with torch.no_grad():
        for features, labels in zip(split.features.split(64), split.labels.split(64), strict=True):
            scores = head(features)
            predicted = predict_classes(scores)
            metrics.update(predicted, labels, segmentation_loss(scores, labels, task.ignore_index))
            maps.append(predicted.cpu().numpy())
    return SegmentationMetrics.compute(metrics.sums, len(task.classes)), np.concatenate(maps)[
        map_rows(len(split.labels))
    ]
