"""Counter-based random numbers, keyed by the sample and not by the process that handles it.

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in numpy: the same key gives the same numbers on every machine, rank
and library version, and no state has to be saved to resume.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def fold_in(*parts: int | str) -> int:
    """Return a 64-bit key derived from numbers and names, e.g. ``fold_in(seed, "mask")``."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def random_bits(base: int, counters: np.ndarray) -> np.ndarray:
    """Return a uint64 hash of each counter under a key; ``counters`` is any integer array."""
    with np.errstate(over="ignore"):
        x = np.uint64(base) + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(base: int, samples: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` uniform numbers in [0, 1) per sample number, float64 (len(samples), count)."""
    rows = random_bits(base, samples)[:, None]
    with np.errstate(over="ignore"):
        bits = random_bits(0, rows + np.arange(count, dtype=np.uint64)[None, :] * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(base: int, length: int, positions: np.ndarray) -> np.ndarray:
    """Return the image of each position under a keyed permutation of ``range(length)``, int64.

    A balanced Feistel network over the next power of four with cycle walking (Black and Rogaway, CT-RSA 2002), which
    is a bijection for any round function. Uses six rounds of SplitMix64 and stores nothing.
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
    """Return a uint64 hash of each name in an array of byte strings under a key, ignoring trailing zero bytes."""
    width = -(-names.dtype.itemsize // 8) * 8
    words = names.astype(f"S{width}").view(np.uint64).reshape(len(names), width // 8)
    state = np.full(len(names), base, dtype=np.uint64)
    for column in words.T:
        # zero words leave the state unchanged, so that the hash does not depend on the column width
        state = np.where(column == 0, state, random_bits(0, state ^ column))
    return state
