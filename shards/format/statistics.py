"""Per-band statistics of valid pixels in exact integers: merging in any order gives the same bits."""

from dataclasses import dataclass

import numpy as np

from shards.sensors.sensor import NODATA


@dataclass
class BandSums:
    """Sums over valid pixels, one entry per band, as Python integers (no overflow, exact in JSON).

    Attributes:
        count: number of valid pixels.
        total: sum of digital numbers.
        squares: sum of squared digital numbers.
        low, high: smallest and largest digital number; 32767 and -32767 for a band without valid pixels.
    """

    count: list[int]
    total: list[int]
    squares: list[int]
    low: list[int]
    high: list[int]

    @classmethod
    def empty(cls, bands: int) -> "BandSums":
        return cls([0] * bands, [0] * bands, [0] * bands, [32767] * bands, [-32767] * bands)

    @classmethod
    def of(cls, tile: np.ndarray) -> "BandSums":
        """Return the sums of one tile, int16 (bands, height, width)."""
        from shards.format import kernels

        sums = np.empty((5, len(tile)), dtype=np.int64)
        kernels.band_sums(np.ascontiguousarray(tile).reshape(len(tile), -1), np.int16(NODATA), sums)
        return cls(*(column.tolist() for column in sums))

    def add(self, other: "BandSums") -> None:
        for name, merge in (("count", int.__add__), ("total", int.__add__), ("squares", int.__add__)):
            setattr(self, name, [merge(a, b) for a, b in zip(getattr(self, name), getattr(other, name), strict=True)])
        self.low = [min(a, b) for a, b in zip(self.low, other.low, strict=True)]
        self.high = [max(a, b) for a, b in zip(self.high, other.high, strict=True)]

    def mean(self) -> np.ndarray:
        """Return the mean digital number, float64 (bands,); 0 for a band without valid pixels."""
        count = np.maximum(np.asarray(self.count, dtype=np.float64), 1)
        return np.asarray(self.total, dtype=np.float64) / count

    def std(self) -> np.ndarray:
        """Return the population standard deviation, float64 (bands,); 1 for constant bands to keep z-scores finite."""
        variance = [
            (squares * count - total * total) / (count * count) if count else 0.0
            for count, total, squares in zip(self.count, self.total, self.squares, strict=True)
        ]
        std = np.sqrt(np.asarray(variance))
        return np.where(std > 0, std, 1.0)
