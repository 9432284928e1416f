"""Baseline protocol: models of scikit-learn on the spectra that the encoder gets, in the place of an encoder.

A model of a dense task predicts each pixel from its spectrum; that of other tasks predicts a tile from the mean and the
standard deviation of its spectra. Models are fitted to a bounded number of training pixels, which a seed draws, and
predict all validation and test tiles, from which scores are computed as for any other protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from finetune.baselines.registry import BaselineModelConfig
from finetune.data.datasets import LabeledSplit
from finetune.evaluation.collector import Evaluation
from finetune.evaluation.context import EvaluationContext
from finetune.evaluation.selection import is_better
from finetune.metrics.scores import Scores
from finetune.tasks.kinds.kind import TaskKind
from shards.errors import ConfigError
from shards.order.random_bits import fold_in, permute

SPECTRA_AT_ONCE = 1 << 16
"""Number of pixels that models predict at a time."""


@dataclass(frozen=True)
class FittedBaseline:
    """A model with one seed, tested once."""

    config: BaselineModelConfig
    seed: int
    validation: Scores
    test: Evaluation


def count_labeled(kind: TaskKind, split: LabeledSplit, rows: np.ndarray) -> np.ndarray:
    """Return which pixels of windows, or which windows, have a label that counts: bool (len(rows), positions)."""
    grid = split.size if kind.is_dense else 1
    parts = [kind.votes(split.labels[row : row + 1], grid)[1] for row in rows.tolist()]
    return np.concatenate(parts).reshape(len(rows), -1)


class BaselineSweep:
    """The models of a config on one fraction of the training tiles.

    Args:
        rows: training windows.
    """

    def __init__(self, context: EvaluationContext, rows: np.ndarray) -> None:
        self.context, self.kind, self.rows = context, context.kind, rows
        self.images = context.inputs.build()
        self.labeled = count_labeled(self.kind, context.splits["train"], rows)
        if not self.labeled.any():
            raise ConfigError(f"protocol baseline: no label of {len(rows)} training windows counts: raise the fraction")

    def run(self, seed: int) -> list[FittedBaseline]:
        """Fit every model, and test its best candidate on the validation tiles."""
        from finetune.baselines.models import Baseline, fit_candidates, use_threads

        spectra, votes = self._draw(seed)
        candidates: list[tuple[BaselineModelConfig, Baseline]] = []
        with use_threads(torch.get_num_threads()):
            for config in self.context.config.baseline.chosen:
                fitted = fit_candidates(config, self.kind.form, spectra, votes, seed)
                candidates += [(config, model) for model in fitted]
                self.context.heartbeat()
            best: dict[BaselineModelConfig, tuple[Baseline, Scores]] = {}
            validated = self._evaluate([model for _, model in candidates], "val")
            for (config, model), evaluation in zip(candidates, validated, strict=True):
                before = best[config][1] if config in best else None
                if before is None or is_better(self.kind, "score", evaluation.scores, before):
                    best[config] = model, evaluation.scores
            tested = self._evaluate([model for model, _ in best.values()], "test")
        return [
            FittedBaseline(config, seed, scores, test)
            for (config, (_, scores)), test in zip(best.items(), tested, strict=True)
        ]

    def _draw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the spectra (n, F) and votes (n, K) that models are fitted to, at most ``baseline.samples``."""
        split, positions = self.context.splits["train"], self.labeled.shape[1]
        labeled = np.flatnonzero(self.labeled)
        count = min(len(labeled), self.context.config.baseline.samples)
        drawn = np.sort(labeled[permute(fold_in(seed, "baseline"), len(labeled), np.arange(count))])
        spectra, votes = [], []
        for begin, part in self._batches(self.rows):
            inside = drawn[(drawn >= begin * positions) & (drawn < (begin + len(part)) * positions)]
            if len(inside):
                chosen = inside - begin * positions
                spectra.append(self._spectra(split, part)[chosen])
                votes.append(self._votes(split, part)[chosen])
        return np.concatenate(spectra), np.concatenate(votes)

    def _evaluate(self, models: list, name: str) -> list[Evaluation]:
        split = self.context.splits[name]
        collectors = [self.context.collector(name) for _ in models]
        for _, rows in self._batches(np.arange(len(split))):
            spectra = self._spectra(split, rows)
            for model, collector in zip(models, collectors, strict=True):
                votes = torch.from_numpy(model.votes(spectra))
                if self.kind.is_dense:
                    votes = votes.unflatten(0, (len(rows), split.size, split.size)).permute(0, 3, 1, 2)
                collector.add_votes(rows, votes, model.has_probabilities)
            self.context.heartbeat()
        return [collector.finish() for collector in collectors]

    def _batches(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield parts of the rows, each with its beginning."""
        length = max(1, SPECTRA_AT_ONCE // self.context.splits["train"].size ** 2)
        for begin in range(0, len(rows), length):
            yield begin, rows[begin : begin + length]

    def _spectra(self, split: LabeledSplit, rows: np.ndarray) -> np.ndarray:
        """Return the spectra of all pixels (n * S * S, C), or the statistics of windows (n, 2 C); float32."""
        images = self.images(torch.from_numpy(split.images(rows)))
        if self.kind.is_dense:
            return images.permute(0, 2, 3, 1).flatten(0, 2).contiguous().numpy()
        return torch.cat([images.mean((2, 3)), images.std((2, 3), correction=0)], dim=1).numpy()

    def _votes(self, split: LabeledSplit, rows: np.ndarray) -> np.ndarray:
        """Return the votes of all pixels or windows (n, K)."""
        votes, _ = self.kind.votes(split.labels[rows], grid=split.size if self.kind.is_dense else 1)
        return votes.reshape(-1, votes.shape[-1])
