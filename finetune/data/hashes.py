"""Hashes of values and arrays, the same on every machine."""

import hashlib
import json
from typing import Any

import numpy as np
import xxhash


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def array_hash(array: np.ndarray) -> str:
    """Return the hash of an array's dtype, shape and values."""
    contiguous = np.ascontiguousarray(array)
    hasher = xxhash.xxh3_128(f"{contiguous.dtype.str} {contiguous.shape} ".encode())
    hasher.update(contiguous.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()
