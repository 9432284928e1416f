"""Full protocol: encoder and head trained together by the ZeRO engine, on any number of processes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from finetune.config import FullConfig
from finetune.datasets import LabelledWindows
from finetune.heads import ConvHead, SegmentationModel, predict_classes
from finetune.metrics import SegmentationMetrics, SegmentationScores
from finetune.probe import Outcome, batch_rows, map_rows
from finetune.tasks import Task
from pretrain import distributed
from pretrain.config import EngineConfig
from pretrain.engine import ZeroEngine
from pretrain.models import Normaliser
from pretrain.models.encoder import Encoder
from pretrain.models.initialise import initialise
from pretrain.optim import build_adamw
from pretrain.schedules import warmup_cosine
from pretrain.telemetry import say
from shards import keyed
from shards.errors import ConfigError


class FullTuning:
    """One full fine-tuning run.

    Args:
        encoder: trained in place, batch norms of ``config.bn_group``.
        splits: train, val and test windows.
        name: of the run, on the console.
    """

    def __init__(
        self,
        encoder: Encoder,
        normalise: Normaliser,
        splits: dict[str, LabelledWindows],
        task: Task,
        config: FullConfig,
        engine: EngineConfig,
        seed: int,
        name: str,
    ) -> None:
        self.normalise, self.splits, self.task = normalise, splits, task
        self.config, self.seed, self.name = config, seed, name
        self.device = distributed.device()
        self.share = share_of_batch(config)
        head = ConvHead(encoder.feature_dim, len(task.classes), encoder.stride, config.bn_group)
        initialise(head, "head", seed)
        model = SegmentationModel(encoder, head)
        optimizer = build_adamw(model, config.lr, (0.9, 0.999), config.weight_decay)
        self.engine = ZeroEngine(model, optimizer, engine, self.share, accumulation=1, clip=config.clip)

    def fit(self) -> Outcome:
        """Train, validate at intervals, and return the test scores at the best validation loss."""
        config = self.config
        best: Outcome | None = None
        for step in range(config.steps):
            self.engine.set_lr(warmup_cosine(step, config.steps, config.warmup_steps, config.lr, 0.0))
            self.engine.step(self._losses(step))
            if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
                validation, _ = self._evaluate("val")
                say(
                    f"{self.name}  step {step + 1}/{config.steps}  validation loss {validation.loss:.4f}  "
                    f"OA {validation.overall_accuracy:.3f}  mIoU {validation.macro_iou:.3f}"
                )
                if best is None or validation.loss < best.validation.loss:
                    test, maps = self._evaluate("test")
                    best = Outcome(test, validation, config.lr, step + 1, maps)
        assert best is not None  # config.steps is positive
        return best

    def _losses(self, step: int) -> Iterator[Tensor]:
        """This rank's loss, divided by the pixels that count in the whole batch: ranks weigh as they hold labels."""
        train, world = self.splits["train"], distributed.world_size()
        rows = batch_rows(step, self.config.batch, len(train), self.seed)
        counted = max(1, int((train.labels[rows] != self.task.ignore_index).sum()))
        mine = slice(distributed.rank() * self.share, (distributed.rank() + 1) * self.share)
        numbers = np.arange(step * self.config.batch, (step + 1) * self.config.batch)[mine]
        images, labels = _mirrored(train, rows[mine], numbers, self.seed)
        loss, _ = self.engine(self.normalise(images.to(self.device)), labels.to(self.device), self.task.ignore_index)
        yield loss * (world / counted)

    def _evaluate(self, split: str) -> tuple[SegmentationScores, np.ndarray]:
        windows, world, batch = self.splits[split], distributed.world_size(), self.share
        metrics = SegmentationMetrics(len(self.task.classes), self.task.ignore_index, self.device)
        drawn = set(map_rows(len(windows)).tolist())
        maps: dict[int, np.ndarray] = {}
        for turn in range(-(-len(windows) // (batch * world))):  # as many forwards on every rank
            numbers = np.arange(batch) + batch * (turn * world + distributed.rank())
            rows = np.minimum(numbers, len(windows) - 1)
            labels = torch.from_numpy(windows.labels[rows])
            labels[torch.from_numpy(numbers >= len(windows))] = self.task.ignore_index
            images = self.normalise(torch.from_numpy(windows.images[rows]).to(self.device))
            labels = labels.to(self.device)
            loss, scores = self.engine.evaluation(images, labels, self.task.ignore_index)
            predicted = predict_classes(scores)
            metrics.update(predicted, labels, loss)
            maps |= {
                row: one.cpu().numpy() for row, one in zip(numbers.tolist(), predicted, strict=True) if row in drawn
            }
        everywhere = {row: one for part in distributed.gather_objects(maps) for row, one in part.items()}
        sums = distributed.all_reduce_sum(metrics.sums)
        total = SegmentationMetrics.compute(sums, len(self.task.classes))
        return total, np.stack([everywhere[row] for row in sorted(drawn)])


def share_of_batch(config: FullConfig) -> int:
    """Samples per process and step; raises ConfigError where they don't come out whole."""
    world = distributed.world_size()
    if config.batch % (world * config.bn_group):
        raise ConfigError(
            f"key 'full.batch': {config.batch} is no multiple of full.bn_group {config.bn_group} x {world} processes"
        )
    return config.batch // world


def _mirrored(
    windows: LabelledWindows, rows: np.ndarray, numbers: np.ndarray, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, S, S) and labels (B, S, S), each axis mirrored by a coin keyed by the sample number."""
    coins = keyed.uniform(keyed.key(seed, "mirror"), numbers, 2) < 0.5
    images, labels = windows.images[rows], windows.labels[rows]
    for axis in (0, 1):
        chosen = coins[:, axis]
        images[chosen] = np.flip(images[chosen], axis=axis + 2)
        labels[chosen] = np.flip(labels[chosen], axis=axis + 1)
    return torch.from_numpy(images), torch.from_numpy(labels)
