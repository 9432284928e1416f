"""Counter-based random numbers, keyed by the sample and never by the process that handles it.

A counter-based generator (SplitMix64: Steele, Lea and Flood, OOPSLA 2014) in numpy: the same key gives
the same numbers on every machine, rank and library version, and nothing has to be saved to resume.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def fold_in(*parts: int | str) -> int:
    """A 64-bit key from numbers and names, e.g. ``fold_in(seed, "mask")``."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def random_bits(base: int, counters: np.ndarray) -> np.ndarray:
    """uint64 hash of each counter under a key; ``counters`` is any integer array."""
    with np.errstate(over="ignore"):
        x = np.uint64(base) + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(base: int, samples: np.ndarray, count: int) -> np.ndarray:
    """float64 (len(samples), count) in [0, 1): ``count`` numbers for each sample number."""
    rows = random_bits(base, samples)[:, None]
    with np.errstate(over="ignore"):
        bits = random_bits(0, rows + np.arange(count, dtype=np.uint64)[None, :] * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(base: int, length: int, positions: np.ndarray) -> np.ndarray:
    """int64: where a permutation of ``range(length)`` fixed by the key takes each position; nothing is stored.

    A balanced Feistel network over the next power of four, walked until it lands inside (Black and Rogaway,
    CT-RSA 2002): a bijection whatever the round function is. Six rounds of SplitMix64.
    """
    half = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [fold_in(base, "round", number) for number in range(6)]
    result = np.asarray(positions, dtype=np.uint64).copy()
    walking = np.ones(len(result), dtype=bool)
    while walking.any():
        x = result[walking]
        left, right = x >> bits, x & mask
        for round_key in keys:
            left, right = right, left ^ (random_bits(round_key, right) & mask)
        result[walking] = left << bits | right
        walking = result >= length
    return result.astype(np.int64)


def hash_names(base: int, names: np.ndarray) -> np.ndarray:
    """uint64 hash of each name (an array of bytes strings) under a key; trailing zero bytes do not count."""
    width = -(-names.dtype.itemsize // 8) * 8
    words = names.astype(f"S{width}").view(np.uint64).reshape(len(names), -1)
    state = np.full(len(names), base, dtype=np.uint64)
    for column in words.T:
        # zero words leave the state alone: the width of the column must not matter
        state = np.where(column == 0, state, random_bits(0, state ^ column))
    return state
