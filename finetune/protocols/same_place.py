"""The same place through two sensors: whether features tell places apart, whatever the bands they are computed from.

Windows of test tiles, seen through one band set, are searched for by cosine similarity among the windows of all tiles,
seen through another. A window is represented by the mean of its feature map; each position of the map, a patch of the
encoder, is searched for as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.data.datasets import LabeledSplit
from finetune.encoders.features import Features
from finetune.evaluation.neighbors import SAME_PLACE

BATCH = 32
QUERIES = 1024
"""Queries that are compared with all candidates at once."""

Source = tuple[Features, LabeledSplit]


def match_places(query: Source, candidates: Sequence[Source], most: int) -> tuple[np.ndarray, dict[str, float]]:
    """Search for the windows and patches of a split.

    Args:
        query: a split, seen through one band set.
        candidates: the same split, seen through another, and then other splits.
        most: maximum number of patches that are compared, the first ones.

    Returns:
        The measures `SAME_PLACE` of each tile of the split, float64 (tiles, 6), NaN where undefined (patches of pooled
        features); and scores: means over tiles, and the shares that would be found by chance.
    """
    split = query[1]
    known, seen = _Vectors.of(candidates, most), _Vectors.of([query], most)
    columns, scores = [], dict[str, float]()
    for name, keys, queries, window_of in (
        ("tile", known.windows, seen.windows, np.arange(len(seen.windows))),
        ("patch", known.patches, seen.patches, seen.window_of),
    ):
        found = _search(queries, keys).cpu().numpy()
        columns.append(_mean_by_tile(found, split.tile_of[window_of], len(split.items)))
        if len(keys):
            scores[f"{name}_chance"] = 1 / len(keys)
    measures = np.concatenate(columns, axis=1)
    means = {name: column[~np.isnan(column)] for name, column in zip(SAME_PLACE, measures.T, strict=True)}
    return measures, {name: float(values.mean()) for name, values in means.items() if len(values)} | scores


@dataclass(frozen=True)
class _Vectors:
    """Features of unit length.

    Attributes:
        windows: (N, D).
        patches: (P, D); empty for pooled features.
        window_of: window of each patch (P,).
    """

    windows: Tensor
    patches: Tensor
    window_of: np.ndarray

    @classmethod
    def of(cls, sources: Sequence[Source], most: int) -> "_Vectors":
        windows, patches, positions, kept = list[Tensor](), list[Tensor](), 1, 0
        for batch in _batches(sources):
            is_map = batch.dim() == 4
            windows.append(batch.mean((2, 3)) if is_map else batch)
            if is_map and kept < most:
                positions = batch.shape[2] * batch.shape[3]
                patches.append(batch.permute(0, 2, 3, 1).flatten(0, 2)[: most - kept])
                kept += len(patches[-1])
        means = F.normalize(torch.cat(windows), dim=1)
        found = F.normalize(torch.cat(patches), dim=1) if patches else means[:0]
        return cls(means, found, np.arange(len(found)) // positions)


def _batches(sources: Sequence[Source]) -> Iterator[Tensor]:
    for features, split in sources:
        for begin in range(0, len(split), BATCH):
            rows = np.arange(begin, min(begin + BATCH, len(split)))
            yield features.batch(rows, np.zeros(len(rows), np.int64))


def _search(queries: Tensor, keys: Tensor) -> Tensor:
    """Compare each query with the key of its own number and with all others.

    Args:
        queries: unit vectors (N, D).
        keys: unit vectors (M, D), M at least N.

    Returns:
        float32 (N, 3): cosine similarity to its own key, the mean similarity to all other keys, and 1 if its own is
        nearer than all others, else 0.
    """
    measured = [queries.new_zeros((0, 3))]
    for begin in range(0, len(queries), QUERIES):
        similarity = queries[begin : begin + QUERIES] @ keys.T
        own = similarity.diagonal(begin)[:, None]
        others = (similarity.sum(1, keepdim=True) - own) / max(len(keys) - 1, 1)
        is_nearest = (similarity >= own).sum(1, keepdim=True) == 1
        measured.append(torch.cat([own, others, is_nearest.float()], 1))
    return torch.cat(measured)


def _mean_by_tile(values: np.ndarray, tile_of: np.ndarray, tiles: int) -> np.ndarray:
    """Average rows (N, K) by the tile of each; NaN for tiles without any. float64 (tiles, K)."""
    sums, counts = np.zeros((tiles, values.shape[1])), np.bincount(tile_of, minlength=tiles)[:, None]
    np.add.at(sums, tile_of, values)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
