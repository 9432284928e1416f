"""Accuracies of simple classifiers on frozen features during training: nearest neighbors and a linear map.

A cell of the feature map has the label of most of its pixels. Both classifiers have closed forms, so that a curve over
training shows the encoder alone (kNN as in DINO, arXiv 2104.14294; ridge regression).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.evaluating import check_stop
from pretrain.loop.nearest import nearest_vote
from pretrain.objectives.objective import Objective
from pretrain.resilience.guard import Diverged
from pretrain.weights.finite import is_finite
from shards.errors import ConfigError, ShardError, UnreachableError
from shards.order.random_bits import fold_in, permute
from shards.order.selection import ViewConfig
from shards.order.view import view_rows
from shards.read.quarantine import Quarantine
from shards.read.reader import ShardReader
from shards.sensors.sensor import NODATA

CELLS = 32
"""Most cells taken from each tile."""

TEMPERATURE = 0.07
"""Temperature of a neighbor's vote."""

RIDGE = 1e-2
"""Penalty of the ridge regression per sample, for standardized features."""


@dataclass(frozen=True)
class Cells:
    """Features (N, D) float32 and labels (N,) int64, the same on all ranks."""

    features: Tensor
    labels: Tensor


class EncoderProbe:
    """Evaluates the encoder of a run on labeled shards.

    Args:
        config: of the run, with ``probe``.
        bands: number of bands of the source's tiles.
        source: number of the source whose bands and statistics the shards have.
        channels: number of bands of the run's tiles, to which others are padded; None for ``bands``.

    Raises:
        ConfigError, ShardError: the shards have no labels, other bands, or tiles smaller than the image.
    """

    def __init__(self, config: PretrainConfig, bands: int, source: int = 0, channels: int | None = None) -> None:
        assert config.probe is not None
        self.probe, self.size, self.micro = config.probe, config.model.image_size, config.train.micro_batch
        self.seed, self.source = config.run.seed, source
        self._padding = 0 if channels is None else channels - bands
        self._key = f"key 'data.sources.{source}.probe'" if config.data.sources else "key 'probe.shards'"
        self.shards = str(config.data.sources[source].probe if config.data.sources else self.probe.shards)
        self.reader = ShardReader(self.shards)
        shape = self.reader.tile_shape
        if shape[0] != bands or min(shape[1:]) < self.size:
            raise ConfigError(f"{self._key}: tiles have shape {shape}, but the run takes {bands} bands, {self.size} px")
        self.splits = {name: self._labeled(name) for name in ("train", "val")}
        self.quarantine = Quarantine(
            self.splits["train"],
            self.reader.manifest.content_hash,
            config.data.max_bad_tiles,
            Path(config.run.dir),
            distributed.rank(),
            held_out=self.splits["val"],
        )

    def _labeled(self, split: Literal["train", "val"]) -> np.ndarray:
        """Return the rows of the split's tiles that have labels, int64."""
        rows = view_rows(ViewConfig(split=split), self.reader.table)
        rows = rows[self.reader.table["mask_length"][rows] > 0]
        if not len(rows):
            raise ConfigError(f"{self._key}: {self.shards} has no labeled tiles in '{split}'; see --labels")
        return rows

    def scores(
        self, objective: Objective, engine: ZeroEngine, stop_requested: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Return the accuracies on the val cells; every rank calls it.

        Raises:
            Stopped: a rank was asked to stop.
            Diverged: features are non-finite, which accuracies would not show.
        """
        train, val = (self._cells(split, objective, engine, stop_requested) for split in ("train", "val"))
        if not (is_finite(train.features) and is_finite(val.features)):
            raise Diverged("diverged: the probe's features are NaN or infinite: lower optim.lr")
        return {
            "knn_accuracy": _accuracy(nearest_classes(train, val.features, self.probe.neighbors), val.labels),
            "linear_accuracy": _accuracy(ridge_classes(train, val.features), val.labels),
        }

    def _cells(
        self,
        split: Literal["train", "val"],
        objective: Objective,
        engine: ZeroEngine,
        stop_requested: Callable[[], bool],
    ) -> Cells:
        """Return the cells of tiles drawn by the run's seed; the tiles are divided among the ranks."""
        labeled, world = self.splits[split], distributed.world_size()
        order = permute(fold_in(self.seed, "probe", split), len(labeled), np.arange(len(labeled)))
        chosen = labeled[order][: -(-self.probe.samples // CELLS)]
        own_cells: dict[int, tuple[Tensor, Tensor]] = {}
        rounds = -(-len(chosen) // (self.micro * world))  # as many forwards on every rank
        numbers = np.arange(rounds * self.micro * world).reshape(rounds, world, self.micro)[:, distributed.rank()]
        rows = chosen[np.minimum(numbers, len(chosen) - 1)]
        tiles = distributed.raise_on_all_ranks(lambda: [[self._read(int(row)) for row in batch] for batch in rows])
        for turn, batch in zip(numbers.tolist(), tiles, strict=True):
            check_stop(stop_requested())
            values = torch.stack([values for values, _ in batch]).to(distributed.device())
            values = F.pad(values, (0, 0, 0, 0, 0, self._padding), value=NODATA)
            sources = torch.full((len(values),), self.source, dtype=torch.int64, device=values.device)
            maps = objective.features(engine, objective.normalize(values, sources=sources), sources).float().cpu()
            for number, features, (_, labels) in zip(turn, maps, batch, strict=True):
                if number < len(chosen):
                    own_cells[number] = self._draw(number, features, labels)
        everyone = {number: cells for part in distributed.gather_objects(own_cells) for number, cells in part.items()}
        features, labels = (
            torch.cat(part) for part in zip(*(everyone[number] for number in sorted(everyone)), strict=True)
        )
        if not len(labels):
            raise ConfigError(f"key 'probe.ignore': no cell of '{split}' has any other label")
        if labels.min() < 0:
            raise ConfigError(
                f"key 'probe.ignore': label {labels.min()} of '{split}' is negative: add it to probe.ignore"
            )
        return Cells(features, labels)

    def _read(self, row: int) -> tuple[Tensor, Tensor]:
        """Return the center of a tile, int16 (C, size, size), and of its label tile, int64 (size, size).

        If either is damaged, both are taken from another tile of the split.
        """
        values = np.empty((1, *self.reader.tile_shape), dtype=np.int16)
        attempt, requested = 0, row
        while True:
            try:
                if row not in self.quarantine:
                    self.reader.read([row], values)
                    codes = self.reader.read_mask(row)
                    assert codes is not None
                    break
            except UnreachableError:
                raise
            except ShardError as error:
                self.quarantine.add(row, self.reader.key(row), str(error))
            attempt += 1
            row = self.quarantine.substitute(requested, attempt)
        top, left = ((side - self.size) // 2 for side in codes.shape)
        window = np.s_[..., top : top + self.size, left : left + self.size]
        return torch.from_numpy(values[0][window].copy()), torch.from_numpy(codes[window].astype(np.int64))

    def _draw(self, number: int, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return some cells of one tile: features (n, D) and labels (n,)."""
        stride = labels.shape[0] // features.shape[-1]
        pixels = labels.unfold(0, stride, stride).unfold(1, stride, stride).flatten(2)
        classes = pixels.mode(-1).values.flatten()
        ignored = [*self.probe.ignore, NODATA]
        counted = torch.from_numpy(np.flatnonzero(~np.isin(classes.numpy(), ignored)))
        order = permute(fold_in(self.seed, "cells", number), max(len(counted), 1), np.arange(len(counted)))
        taken = counted[torch.from_numpy(order[:CELLS])]
        return features.flatten(1).T[taken], classes[taken]


def nearest_classes(train: Cells, features: Tensor, neighbors: int) -> Tensor:
    """Return the classes (N,) of features (N, D) by a vote of the nearest training cells."""
    queries, keys = F.normalize(features, dim=-1), F.normalize(train.features, dim=-1)
    votes = F.one_hot(train.labels).to(torch.uint8)
    return nearest_vote(queries, keys, votes, neighbors, TEMPERATURE).argmax(-1)


def ridge_classes(train: Cells, features: Tensor) -> Tensor:
    """Return the classes (N,) of features (N, D) by ridge regression on one-hot labels of the training cells."""
    mean, spread = train.features.double().mean(0), train.features.double().std(0, unbiased=False) + 1e-6
    x = (train.features.double() - mean) / spread
    y = F.one_hot(train.labels).double()
    level = y.mean(0)
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x.T @ (y - level))
    return (((features.double() - mean) / spread) @ weights + level).argmax(-1)


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return (predicted == labels).double().mean().item()
