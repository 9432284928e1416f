"""Nearest neighbours on frozen features: no training, so nothing but the encoder is judged.

A segmentation's positions vote with the class that most of their pixels have; a tile of a multi-label task with its
classes; of a regression with its values (weighted kNN of arXiv 1805.01978, as DINO evaluates).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.config import KnnConfig
from finetune.data.datasets import LabeledSplit
from finetune.encoders.features import Features
from finetune.tasks import Task
from pretrain.loop.nearest import nearest_vote
from shards.order.random_bits import fold_in, permute

BATCH = 32


class NearestNeighbours:
    """A bank of training features with what they vote for.

    Args:
        rows: training windows that are in it; unmirrored view only.
    """

    def __init__(
        self, features: Features, split: LabeledSplit, rows: np.ndarray, task: Task, config: KnnConfig, seed: int
    ) -> None:
        self.task, self.config = task, config
        keys, votes = [], []
        for number, part in enumerate(_parts(rows)):
            room = max(1, config.bank * len(part) // len(rows))
            found = features.batch(part, np.zeros(len(part), np.int64))
            vectors, choices = self._flat(found, torch.from_numpy(split.labels[part]).to(found.device))
            if len(vectors) > room:
                kept = permute(fold_in(seed, "bank", number), len(vectors), np.arange(room))
                vectors, choices = vectors[torch.from_numpy(kept)], choices[torch.from_numpy(kept)]
            keys.append(vectors)
            votes.append(choices)
        self.keys, self.votes = F.normalize(torch.cat(keys), dim=1), torch.cat(votes)

    def predict(self, features: Tensor, size: int) -> Tensor:
        """As `predict` of heads, from features of windows: classes (n, size, size), probabilities or values (n, K)."""
        dense = features.dim() == 4
        queries = features.permute(0, 2, 3, 1).flatten(0, 2) if dense else features
        voted = nearest_vote(
            F.normalize(queries, dim=1), self.keys, self.votes, self.config.neighbors, self.config.temperature
        )
        if not dense:
            return voted
        classes = voted.argmax(1).view(len(features), *features.shape[2:])
        factor = size // features.shape[2]
        return classes.repeat_interleave(factor, 1).repeat_interleave(factor, 2)

    def _flat(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) and their votes (n, K); positions of a map where no pixel counts are left out."""
        if features.dim() == 2:
            return features, labels.float()
        classes, grid = len(self.task.classes), features.shape[2]
        one_hot = F.one_hot(labels.long(), classes + 1)[..., :classes].permute(0, 3, 1, 2).float()
        shares = F.avg_pool2d(one_hot, labels.shape[1] // grid)
        counts = shares.sum(1) > 0
        majority = F.one_hot(shares.argmax(1), classes).to(torch.uint8)
        return features.permute(0, 2, 3, 1)[counts], majority[counts]


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(rows), BATCH):
        yield rows[begin : begin + BATCH]
