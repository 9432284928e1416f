"""Randomness keyed by what a sample is, never by which process handles it.

A counter-based generator (SplitMix64: Steele, Lea and Flood, OOPSLA 2014) in numpy: the same key gives
the same numbers on every machine, rank and library version, and nothing has to be saved to resume.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(*parts: int | str) -> int:
    """A 64-bit key from numbers and names, e.g. ``key(seed, "mask")``."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def hashes(base: int, counters: np.ndarray) -> np.ndarray:
    """uint64 hash of each counter under a key; ``counters`` is any integer array."""
    with np.errstate(over="ignore"):
        x = np.uint64(base) + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(base: int, samples: np.ndarray, count: int) -> np.ndarray:
    """float64 (len(samples), count) in [0, 1): ``count`` numbers for each sample number."""
    rows = hashes(base, samples)[:, None]
    with np.errstate(over="ignore"):
        bits = hashes(0, rows + np.arange(count, dtype=np.uint64)[None, :] * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(base: int, length: int) -> np.ndarray:
    """int64 (length,): a permutation of ``range(length)`` fixed by the key."""
    return np.argsort(hashes(base, np.arange(length)), kind="stable")
