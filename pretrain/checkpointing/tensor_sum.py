"""A checksum of tensors that adds up: the sum over all parts of a tensor is the same however it was divided."""

import numpy as np
import xxhash

BLOCK = 1 << 16
MASK = (1 << 52) - 1
"""Sums are modulo 2**52, so that 2**11 of them add up in a signed 64-bit integer."""
_WEIGHTS = np.random.Generator(np.random.Philox(52)).integers(0, 2**64, BLOCK, dtype=np.uint64) | np.uint64(1)


def tensor_sum(name: str, start: int, values: np.ndarray) -> int:
    """Return the sum of a tensor's elements as 32-bit words, each times an odd number that its name and place give.

    A changed word always changes the sum; moved or exchanged words change it but for one time in 2**51.

    Args:
        start: number of the first element in the tensor; 0 unless elements have 4 bytes.
        values: contiguous, (n,), of any dtype.
    """
    content = values.view(np.uint8)
    words = np.pad(content, (0, -len(content) % 4)).view(np.uint32) if len(content) % 4 else content.view(np.uint32)
    total = done = 0
    while done < len(words):
        block, begin = divmod(start + done, BLOCK)
        chunk = words[done : done + BLOCK - begin]
        factor = xxhash.xxh3_64_intdigest(f"{name}/{block}".encode()) | 1
        total += factor * int(np.dot(chunk.astype(np.uint64), _WEIGHTS[begin : begin + len(chunk)]))
        done += len(chunk)
    return total & MASK
