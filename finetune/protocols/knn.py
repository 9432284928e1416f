"""Nearest neighbors on frozen features: without training, the scores depend on the encoder only.

Weighted kNN of arXiv 1805.01978, as in DINO's evaluation. The task kind defines the votes: a position of the feature
map votes for the most frequent class of its pixels or the mean of their values; a tile votes for its classes or values.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.config import KnnConfig
from finetune.data.datasets import LabeledSplit
from finetune.encoders.features import Features
from finetune.tasks.kinds.kind import TaskKind
from pretrain.loop.nearest import nearest_vote
from shards.order.random_bits import fold_in, permute

BATCH = 32


class NearestNeighbors:
    """A bank of training features with their votes.

    Args:
        rows: training windows in the bank, in their first view.
    """

    def __init__(
        self, features: Features, split: LabeledSplit, rows: np.ndarray, kind: TaskKind, config: KnnConfig, seed: int
    ) -> None:
        self.kind, self.config = kind, config
        keys, votes = [], []
        for number, part in enumerate(_parts(rows)):
            room = max(1, config.bank * len(part) // len(rows))
            features_of_part = features.batch(part, np.zeros(len(part), np.int64))
            vectors, choices = self._flat(features_of_part, split.labels[part])
            if len(vectors) > room:
                subset = permute(fold_in(seed, "bank", number), len(vectors), np.arange(room))
                vectors, choices = vectors[torch.from_numpy(subset)], choices[torch.from_numpy(subset)]
            keys.append(vectors)
            votes.append(choices)
        self.keys, self.votes = F.normalize(torch.cat(keys), dim=1), torch.cat(votes)

    def vote(self, features: Tensor, size: int) -> Tensor:
        """Return averaged votes (n, K, S, S) or (n, K) from features (n, D, g, g) or (n, D) of windows of S pixels."""
        is_map = features.dim() == 4
        queries = F.normalize(features.permute(0, 2, 3, 1).flatten(0, 2) if is_map else features, dim=1)
        voted = nearest_vote(queries, self.keys, self.votes, self.config.neighbors, self.config.temperature)
        if not is_map:
            return voted
        grid, factor = features.shape[2], size // features.shape[2]
        votes = voted.view(len(features), grid, grid, -1).permute(0, 3, 1, 2)
        return votes.repeat_interleave(factor, -2).repeat_interleave(factor, -1)

    def _flat(self, features: Tensor, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return vectors (n, D) and their votes (n, K), without positions of a map where no label counts."""
        votes, counts = self.kind.votes(labels, grid=features.shape[2] if features.dim() == 4 else 1)
        vectors = features.permute(0, 2, 3, 1) if features.dim() == 4 else features
        return vectors[torch.from_numpy(counts)], torch.from_numpy(votes[counts]).to(features.device)


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(rows), BATCH):
        yield rows[begin : begin + BATCH]
