"""The order of samples over several datasets, a pure function of (weights, seed, position).

Sample number ``n`` belongs to block ``n // block``, and all samples of a block come from one source. Blocks come in
cycles of ``sum(weights)``, in which each source has exactly its weight of blocks. The j-th block of a source takes the
samples ``j * block`` to ``(j + 1) * block - 1`` of the source's own order (shards/order/plan.py), so each source is
visited as if it were alone, and one integer resumes all of them.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from shards.errors import ConfigError
from shards.order.plan import SamplePlan
from shards.order.random_bits import fold_in, uniform

LONGEST_CYCLE = 10_000
"""Maximum number of blocks in a cycle: a request sorts the cycles that it touches."""


def whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Return the smallest whole numbers in the same proportions as the weights, read as decimals: 0.5, 1.5 are 1, 3.

    Raises:
        ConfigError: if they add up to more than LONGEST_CYCLE.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    common = math.gcd(*whole)
    shares = tuple(weight // common for weight in whole)
    if sum(shares) > LONGEST_CYCLE:
        raise ConfigError(
            f"key 'data.sources': weights {', '.join(f'{weight:g}' for weight in weights)} repeat only after "
            f"{sum(shares):,} blocks of samples, more than {LONGEST_CYCLE:,}: round them, such as to 3 and 1"
        )
    return shares


@dataclass(frozen=True)
class SourceOrder:
    """A mapping from the sample numbers of a run to the sources and their own sample numbers.

    Attributes:
        weights: whole numbers without a common divisor, one for each source: its blocks in each cycle.
        seed: seed of the order.
        block: consecutive samples that come from one source.
    """

    weights: tuple[int, ...]
    seed: int
    block: int

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each sample number, and its number in the order of that source; both int64."""
        blocks, within = np.divmod(np.asarray(samples, dtype=np.int64), self.block)
        cycles, positions = np.divmod(blocks, sum(self.weights))
        distinct, cycle = np.unique(cycles, return_inverse=True)
        slots = self._cycles(distinct)[cycle, positions]
        weights = np.asarray(self.weights)
        sources = np.repeat(np.arange(len(weights)), weights)[slots]
        rank = slots - (np.cumsum(weights) - weights)[sources]  # of the block among its source's blocks in this cycle
        return sources, (cycles * weights[sources] + rank) * self.block + within

    def counts(self, sample: int) -> np.ndarray:
        """Return how many of the sample numbers below ``sample`` are of each source, int64."""
        weights = np.asarray(self.weights)
        cycle = sample // (self.block * int(weights.sum()))
        begin = cycle * self.block * int(weights.sum())
        sources, _ = self.locate(np.arange(begin, sample))
        return cycle * self.block * weights + np.bincount(sources, minlength=len(weights))

    def _cycles(self, cycles: np.ndarray) -> np.ndarray:
        """Return the slots of the blocks of some cycles in their order, int64 (len(cycles), sum(weights)).

        The slots of a source are adjacent numbers. Its k-th slot is drawn into the k-th of ``weight`` equal parts of
        the cycle, so that each source is spread over the cycle, and its slots stay in ascending order.
        """
        weights = np.asarray(self.weights)
        part = np.concatenate([np.arange(weight) for weight in self.weights])
        draws = uniform(fold_in(self.seed, "sources"), cycles, int(weights.sum()))
        return np.argsort((part + draws) / np.repeat(weights, weights), axis=1, kind="stable")


class MixturePlan:
    """A mapping from the sample numbers of a run to the tiles of several datasets; in place of a SamplePlan.

    Rows and shards of all sources are numbered one after the other, in the order of the sources.

    Args:
        plans: order of each source.
        first_rows: row number of each source's first tile.
        first_shards: shard number of each source's first shard.
        order: the sources of the samples.
        begin: sample number at which this order begins; samples before it belong to an earlier mixture.
    """

    def __init__(
        self,
        plans: Sequence[SamplePlan],
        first_rows: Sequence[int],
        first_shards: Sequence[int],
        order: SourceOrder,
        begin: int = 0,
    ) -> None:
        self.plans, self.order, self.begin = plans, order, begin
        self._first_rows, self._first_shards = first_rows, first_shards

    def starting_at(self, begin: int) -> "MixturePlan":
        """Return the same order with sample number ``begin`` as its first."""
        return MixturePlan(self.plans, self._first_rows, self._first_shards, self.order, begin)

    @property
    def dataset(self) -> str:
        """Hash of the sources, their order and their shares."""
        parts = [[plan.dataset, weight] for plan, weight in zip(self.plans, self.order.weights, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def rows(self) -> np.ndarray:
        """Training rows of all sources, int64, ascending."""
        return np.concatenate([plan.rows + first for plan, first in zip(self.plans, self._first_rows, strict=True)])

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each sample number, and its number in the order of that source; both int64."""
        return self.order.locate(np.asarray(samples, dtype=np.int64) - self.begin)

    def sources(self, samples: np.ndarray) -> np.ndarray:
        """Return the source of each sample number, int64."""
        return self.locate(samples)[0]

    def epochs(self, samples: np.ndarray) -> np.ndarray:
        """Return the epoch of each sample number in its source."""
        sources, numbers = self.locate(samples)
        return numbers // np.asarray([len(plan) for plan in self.plans])[sources]

    def counts(self, sample: int) -> np.ndarray:
        """Return how many samples of each source this order has before sample number ``sample``, int64."""
        return self.order.counts(sample - self.begin)

    def tiles(self, samples: np.ndarray) -> np.ndarray:
        """Return the tile row of each sample number, int64."""
        return self.pairs(samples)[:, 0]

    def pairs(self, samples: np.ndarray) -> np.ndarray:
        """Return two tile rows of each sample's unit, with different timestamps if it has several.

        Returns:
            int64 (len(samples), 2).
        """
        sources, numbers = self.locate(samples)
        pairs = np.empty((len(sources), 2), dtype=np.int64)
        for source in np.unique(sources):
            own = sources == source
            pairs[own] = self.plans[source].pairs(numbers[own]) + self._first_rows[source]
        return pairs

    def shards_from(self, sample: int) -> np.ndarray:
        """Return the shards of the sample's source in the order in which its epoch first needs them."""
        sources, numbers = self.locate(np.asarray([sample]))
        source = int(sources[0])
        return self.plans[source].shards_from(int(numbers[0])) + self._first_shards[source]


TilePlan = SamplePlan | MixturePlan
"""Order of one dataset, or of several."""
