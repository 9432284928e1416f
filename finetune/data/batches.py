"""The windows of each epoch and their order, drawn from seeds; the same for any number of processes."""

import numpy as np

from finetune.data.datasets import LabeledSplit
from shards.order.random_bits import fold_in, permute, uniform


def epoch_order(length: int, batch: int, seed: int, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the batches of an epoch as (positions in the rows, orientations 0..7), ordered by seed and epoch.

    The last batch is filled up from the start of the epoch, so all batches have the same size.
    """
    steps = -(-length // batch)
    indices = permute(fold_in(seed, "finetune", epoch), length, np.arange(steps * batch) % length)
    draws = (uniform(fold_in(seed, "view", epoch), np.arange(steps * batch), 1)[:, 0] * 8).astype(np.int64)
    return [(indices[begin : begin + batch], draws[begin : begin + batch]) for begin in range(0, steps * batch, batch)]


def subset_rows(split: LabeledSplit, fraction: float, seed: int) -> np.ndarray:
    """Return the windows of a fraction of the tiles, at least one; smaller fractions are subsets of larger ones."""
    tiles = len(split.items)
    order = permute(fold_in(seed, "fraction"), tiles, np.arange(tiles))
    chosen = order[: max(1, round(fraction * tiles))]
    return np.flatnonzero(np.isin(split.tile_of, chosen))
