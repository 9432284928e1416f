"""The order of samples, a pure function of (dataset, seed, position): nothing depends on ranks or history.

Sample number ``n`` of a run (0, 1, 2, ... over all epochs) is tile ``order(n // N)[n % N]``, N the number
of training tiles. Global step t takes the numbers t*G to (t+1)*G, and rank r a contiguous slice of
them, so a run resumes from one integer on any number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards import keyed
from shards.errors import ConfigError


def hold_out(locations: Sequence[str], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split tile rows into (training, held out) by location, so that no place is in both.

    Args:
        locations: location of each tile row.
        share: part of the locations to hold out, 0 for none; at least one where it is above 0.

    Returns:
        Two ascending int64 arrays of row numbers.

    Raises:
        ConfigError: too few locations to hold any out.
    """
    rows = np.arange(len(locations))
    if share == 0:
        return rows, rows[:0]
    names = sorted(set(locations), key=lambda name: keyed.key(seed, "hold out", name))
    count = max(1, round(share * len(names)))
    if count >= len(names):
        raise ConfigError(f"key 'data.holdout': {len(names)} locations are too few to hold out {share:g} of them")
    chosen = set(names[:count])
    held = np.asarray([name in chosen for name in locations])
    return rows[~held], rows[held]


@dataclass(frozen=True)
class SamplePlan:
    """Which tile each sample number of a run is.

    Attributes:
        rows: int64, the tile rows that an epoch visits once each.
        dataset: content hash of the shards.
        seed: of the order.
    """

    rows: np.ndarray
    dataset: str
    seed: int

    def epochs(self, samples: np.ndarray) -> np.ndarray:
        """Epoch of each sample number."""
        return samples // len(self.rows)

    def tiles(self, samples: np.ndarray) -> np.ndarray:
        """int64: tile row of each sample number."""
        epochs, positions = np.divmod(samples, len(self.rows))
        tiles = np.empty(len(samples), dtype=np.int64)
        for epoch in np.unique(epochs):  # at most two: a batch may end one epoch and begin the next
            here = epochs == epoch
            order = _order(self.dataset, self.seed, int(epoch), len(self.rows))
            tiles[here] = self.rows[order[positions[here]]]
        return tiles


@lru_cache(maxsize=4)
def _order(dataset: str, seed: int, epoch: int, length: int) -> np.ndarray:
    return keyed.permutation(keyed.key(dataset, seed, "order", epoch), length)


def rank_samples(step: int, global_batch: int, rank: int, world_size: int) -> np.ndarray:
    """Sample numbers of one rank at one step, int64 (global_batch // world_size,)."""
    share = global_batch // world_size
    begin = step * global_batch + rank * share
    return np.arange(begin, begin + share, dtype=np.int64)
