"""The order of samples, a pure function of (dataset, seed, position) that is independent of ranks and history.

An epoch visits every *unit* once: a tile, or a location with one of its timestamps (as published).
Sample number ``n`` of a run (0, 1, 2, ... over all epochs) is unit ``order(n // N)[n % N]``, where N is the number
of units. Global step t takes the numbers t*G to (t+1)*G - 1, and each rank a contiguous slice of them, so a run
resumes from one integer on any number of processes. Orders are computed only for the requested positions
(shards/order/random_bits.py) and never stored.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from shards.errors import ConfigError
from shards.order.random_bits import fold_in, hash_names, permute, uniform
from shards.order.selection import OrderConfig


def train_val_split(
    table: np.ndarray, share: float, seed: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split tile rows into (training, held out) by location, so that no location is in both.

    A location is held out if its draw, a hash of its name and the seed, falls below ``share``, so it stays on the same
    side when the dataset grows. Of ``n`` locations about ``share * n`` are held out. If no draw falls below ``share``,
    as can happen in small datasets, only the location with the smallest draw is held out; it is the only one that can
    change sides later.

    Args:
        table: tile table (shards/format/table.py).
        share: fraction of the locations to hold out, 0 for none; at least one location if it is above 0.
        rows: rows to split; all by default.

    Returns:
        Two ascending int64 arrays of row numbers, both empty if there are no rows.

    Raises:
        ConfigError: if there are too few locations for both sides.
    """
    rows = np.arange(len(table)) if rows is None else np.asarray(rows, dtype=np.int64)
    if share == 0 or not len(rows):
        return rows, rows[:0]
    locations, first = np.unique(table["location_id"][rows], return_index=True)
    draws = hash_names(fold_in(seed, "hold out"), table["location"][rows][first])
    chosen = draws < np.uint64(min(int(share * 2**64), 2**64 - 1))
    if not chosen.any():
        chosen[np.lexsort((locations, draws))[0]] = True
    if chosen.all():
        raise ConfigError(
            f"key 'data.holdout': {len(locations)} locations are too few to hold out {share:g} of them and train on "
            "the rest: lower it, or set 0 to hold out none"
        )
    held = np.isin(table["location_id"][rows], locations[chosen])
    return rows[~held], rows[held]


def held_out_hash(table: np.ndarray, held_out: np.ndarray) -> str:
    """Return the SHA-256 of the names of the held-out locations, to compare the splits of two runs."""
    names = sorted(set(table["location"][held_out].tolist()))
    return hashlib.sha256(b"\0".join(names)).hexdigest()


@dataclass(frozen=True)
class Units:
    """Groups of tile rows that an epoch visits once each.

    Attributes:
        rows: int64 tile rows; the rows of a unit are adjacent.
        first: int64 (units + 1,), start of each unit's rows in ``rows``.
        shard: uint32 (units,), shard of each unit's first row; it ascends, except in a view that leaves out the first
            tiles of locations that lie in several shards.
    """

    rows: np.ndarray
    first: np.ndarray
    shard: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray, rows: np.ndarray, sampling: str) -> "Units":
        """Return the units of tile rows, one per tile or one per location."""
        if sampling == "tile":
            return cls(rows, np.arange(len(rows) + 1), table["shard"][rows])
        locations = table["location_id"][rows]
        order = np.lexsort((rows, locations))  # a location extended by --append has rows in several shards
        first = np.flatnonzero(np.diff(locations[order], prepend=-1))
        grouped = rows[order]
        return cls(grouped, np.append(first, len(rows)), table["shard"][grouped[first]])

    def __len__(self) -> int:
        return len(self.shard)


class SamplePlan:
    """A mapping from the sample numbers of a run to tiles.

    Args:
        table: tile table.
        rows: tile rows to use, ascending.
        dataset: content hash of the shards.
        seed: seed of the order.
        order: shuffle and sampling.

    Attributes:
        rows: as given.
        units: units that an epoch visits.
    """

    def __init__(
        self, table: np.ndarray, rows: np.ndarray, dataset: str, seed: int, order: OrderConfig | None = None
    ) -> None:
        self.rows, self.dataset, self.seed = rows, dataset, seed
        self.order = order or OrderConfig()
        self.units = Units.of(table, rows, self.order.sampling)
        if not len(self.units):
            raise ConfigError("no tile is left to train on: check the view and 'data.holdout'")
        shards, counts = np.unique(self.units.shard, return_counts=True)
        self._by_shard = np.argsort(self.units.shard, kind="stable")
        self._shard_first = np.append(0, np.cumsum(counts))  # position in `_by_shard`
        self._num_shards = len(shards)

    def __len__(self) -> int:
        """Return the number of units in an epoch."""
        return len(self.units)

    def sources(self, samples: np.ndarray) -> np.ndarray:
        """Return the dataset of each sample number, int64: 0, as there is one (see shards/order/mixture.py)."""
        return np.zeros(len(samples), dtype=np.int64)

    def epochs(self, samples: np.ndarray) -> np.ndarray:
        """Return the epoch of each sample number."""
        return samples // len(self)

    def tiles(self, samples: np.ndarray) -> np.ndarray:
        """Return the tile row of each sample number, int64."""
        return self.pairs(samples)[:, 0]

    def pairs(self, samples: np.ndarray) -> np.ndarray:
        """Return two tile rows of each sample's unit, with different timestamps if it has several.

        Returns:
            int64 (len(samples), 2).
        """
        epochs, positions = np.divmod(np.asarray(samples, dtype=np.int64), len(self))
        pairs = np.empty((len(positions), 2), dtype=np.int64)
        for epoch in np.unique(epochs):  # at most two: a batch can end one epoch and begin the next
            in_epoch = epochs == epoch
            units = self._units_at(int(epoch), positions[in_epoch])
            pairs[in_epoch] = self._timestamps(int(epoch), units)
        return pairs

    def shards_from(self, sample: int) -> np.ndarray:
        """Return shard numbers in the order in which the sample's epoch first needs them, starting at that sample."""
        epoch, position = divmod(sample, len(self))
        shards = np.unique(self.units.shard)
        if self.order.shuffle == "global":
            return shards
        order = permute(self._key(epoch), self._num_shards, np.arange(self._num_shards))
        ends = np.cumsum(np.diff(self._shard_first)[order])
        begun = int(np.searchsorted(ends, position, side="right")) // self.order.window * self.order.window
        return np.roll(shards[order], -begun)

    def _key(self, epoch: int) -> int:
        return fold_in(self.dataset, self.seed, "order", epoch, self.order.shuffle)

    def _units_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the unit at each position of an epoch, int64."""
        key = self._key(epoch)
        if self.order.shuffle == "global":
            return permute(key, len(self), positions)
        return self._windowed(key, positions)

    def _windowed(self, key: int, positions: np.ndarray) -> np.ndarray:
        """Permute the shards, split them into windows, and permute the units within each window."""
        shards = permute(key, self._num_shards, np.arange(self._num_shards))
        ends = np.cumsum(np.diff(self._shard_first)[shards])  # position after each shard, in shuffled order
        last_of_window = np.minimum(
            np.arange(self.order.window, self._num_shards + self.order.window, self.order.window), self._num_shards
        )
        window_ends = ends[last_of_window - 1]
        windows = np.searchsorted(window_ends, positions, side="right")
        units = np.empty(len(positions), dtype=np.int64)
        for window in np.unique(windows):
            in_window = windows == window
            begin = window_ends[window - 1] if window else 0
            length = int(window_ends[window] - begin)
            shuffled = begin + permute(fold_in(key, int(window)), length, positions[in_window] - begin)
            slot = np.searchsorted(ends, shuffled, side="right")
            before = np.where(slot > 0, ends[slot - 1], 0)
            units[in_window] = self._by_shard[self._shard_first[shards[slot]] + shuffled - before]
        return units

    def _timestamps(self, epoch: int, units: np.ndarray) -> np.ndarray:
        """Return two tile rows of each unit, drawn by (epoch, unit)."""
        first, count = self.units.first[units], self.units.first[units + 1] - self.units.first[units]
        draws = uniform(fold_in(self.dataset, self.seed, "timestamp", epoch), units, 2)
        first_draw = (draws[:, 0] * count).astype(np.int64)
        step = 1 + (draws[:, 1] * (count - 1)).astype(np.int64)  # 1 to count - 1, so the two rows differ
        second_draw = np.where(count > 1, (first_draw + step) % count, first_draw)
        return self.units.rows[np.stack([first + first_draw, first + second_draw], axis=1)]


def rank_samples(step: int, global_batch: int, rank: int, world_size: int) -> np.ndarray:
    """Return the sample numbers of one rank at one step, int64 (global_batch // world_size,)."""
    share = global_batch // world_size
    begin = step * global_batch + rank * share
    return np.arange(begin, begin + share, dtype=np.int64)
