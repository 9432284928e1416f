"""Few-shot draws: the training windows of k places of each class."""

from dataclasses import dataclass

import numpy as np

from finetune.data.datasets import LabeledSplit
from finetune.data.hashes import array_hash, digest
from shards.order.random_bits import permute


@dataclass(frozen=True)
class FewShots:
    """The places of a split, with the classes that each holds: those of any of its labels that count.

    Attributes:
        places: names (P,).
        place_of: (N,) index into ``places`` of each window.
        holds: bool (P, C).
    """

    places: np.ndarray
    place_of: np.ndarray
    holds: np.ndarray

    @classmethod
    def of(cls, split: LabeledSplit) -> "FewShots":
        """Find the places of a split and their classes."""
        places, place_of_tile = np.unique([item.place for item in split.items], return_inverse=True)
        place_of = place_of_tile[split.tile_of]
        tallies = [split.kind.tally(split.labels[place_of == number]) for number in range(len(places))]
        return cls(places, place_of, np.stack([split.kind.known(tally) for tally in tallies]))

    def rows(self, shots: int, seed: int) -> np.ndarray:
        """Return all windows of the places that `draw_places` draws."""
        return np.flatnonzero(draw_places(self.holds, shots, seed)[self.place_of])

    @property
    def identity(self) -> str:
        """Hash of everything that draws depend on, except their seed and number."""
        return digest([self.places.tolist(), array_hash(self.place_of), array_hash(self.holds)])

    def fewer(self, shots: int) -> dict[int, int]:
        """Return the number of places of each class that has some, but fewer than ``shots``."""
        counts = self.holds.sum(0)
        return {number: int(count) for number, count in enumerate(counts) if 0 < count < shots}


def draw_places(holds: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Draw the first ``shots`` places of each class, in an order that the seed determines; all where a class has fewer.

    Draws of fewer shots are subsets of those of more. A place can hold several classes, so a class can get more places
    than ``shots``; the order is the same for all classes, which keeps these few.

    Args:
        holds: bool (P, C), whether a place holds a class.

    Returns:
        bool (P,).
    """
    order = permute(seed, len(holds), np.arange(len(holds)))
    ordered = holds[order]
    drawn = np.zeros(len(holds), bool)
    drawn[order] = (ordered & (ordered.cumsum(0) <= shots)).any(1)
    return drawn
