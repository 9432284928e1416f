"""A plane of bytes as Zstandard frames: a single one, or independent blocks of 64 KiB.

Blocks follow the Zstandard seekable format: frames one after the other, and a skippable frame with the size of each.
Any decoder restores the plane in one call. One that works in parallel, on a GPU say, finds the frames by their sizes.
Each block has a table of symbols of its own, which makes lossless tiles 0.7 % smaller (docs/shards.md).

Source: contrib/seekable_format/zstd_seekable_compression_format.md of the Zstandard project, version 0.1.0.
"""

import numpy as np
from numcodecs import Zstd

from shards.errors import ShardError

BLOCK = 1 << 16
"""Bytes of a plane in each frame but the last."""

_SKIPPABLE, _SEEKABLE = 0x184D2A5E, 0x8F92EAB1
_HEADER, _ENTRY, _FOOTER = 8, 8, 9  # bytes of the seek table's parts
_FRAME_MAGIC = np.frombuffer(b"\x28\xb5\x2f\xfd", np.uint8)
_FRAME_HEADER = 18  # bytes at most
_DICTIONARY_ID = np.array([0, 1, 2, 4])  # its bytes, by the descriptor
_POWERS = 256 ** np.arange(8)


def compress(zstd: Zstd, plane: np.ndarray, in_blocks: bool) -> bytes:
    """Return the frames of a plane, C-contiguous uint8."""
    if not in_blocks:
        return bytes(zstd.encode(plane))
    flat = plane.reshape(-1)
    blocks = [flat[begin : begin + BLOCK] for begin in range(0, flat.size, BLOCK)]
    frames = [bytes(zstd.encode(block)) for block in blocks]
    entries = np.array([(len(frame), block.size) for frame, block in zip(frames, blocks, strict=True)], "<u4")
    header = np.array([_SKIPPABLE, entries.nbytes + _FOOTER], "<u4")
    return b"".join((*frames, header.tobytes(), entries.tobytes(), _footer(len(frames))))


def decompress(zstd: Zstd, packed: np.ndarray, plane: np.ndarray, in_blocks: bool) -> None:
    """Fill a plane, C-contiguous uint8, from its frames; raises ShardError if they don't hold exactly that."""
    check_size(packed, plane.size, in_blocks)
    try:
        zstd.decode(packed, plane)
    except (RuntimeError, ValueError) as error:
        raise ShardError(f"does not decode: {error}") from None


def check_size(packed: np.ndarray, size: int, in_blocks: bool) -> None:
    """Raise ShardError if the frames of a plane, uint8, say that they don't hold ``size`` bytes."""
    if in_blocks:
        sizes = block_sizes(packed, size)
        begins, expected = np.cumsum(sizes) - sizes, np.minimum(size - BLOCK * np.arange(len(sizes)), BLOCK)
    else:
        begins, expected = np.zeros(1, np.int64), np.array([size])
    if not np.array_equal(content_sizes(packed, begins), expected):
        raise ShardError("does not decode: a plane has the wrong length")


def block_sizes(packed: np.ndarray, size: int) -> np.ndarray:
    """Return the bytes of each frame of a plane in blocks, int64; raises ShardError.

    Args:
        packed: uint8, the frames and their seek table.
        size: bytes of the plane.
    """
    count = -(-size // BLOCK)
    begin = packed.size - _HEADER - count * _ENTRY - _FOOTER
    if begin >= 0:
        table = packed[begin:].tobytes()
        header = np.frombuffer(table, "<u4", 2)
        sizes = np.frombuffer(table, "<u4", 2 * count, _HEADER)[::2].astype(np.int64)
        is_table = header.tolist() == [_SKIPPABLE, count * _ENTRY + _FOOTER] and table.endswith(_footer(count))
        if is_table and sizes.sum() == begin:
            return sizes
    raise ShardError("does not decode: a plane without the sizes of its blocks")


def content_sizes(packed: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Return the content size in the header of each frame, int64, -1 if there is none (RFC 8878, section 3.1.1.1).

    Args:
        packed: uint8, the frames.
        begins: first byte of each frame.
    """
    if not packed.size:
        return np.full(len(begins), -1)
    heads = packed[np.minimum(begins[:, None] + np.arange(_FRAME_HEADER), packed.size - 1)]
    descriptors = heads[:, 4].astype(np.int64)
    single, kind = descriptors >> 5 & 1, descriptors >> 6
    widths = np.where(kind == 0, single, 1 << kind)
    fields = 6 - single + _DICTIONARY_ID[descriptors & 3]
    digits = np.take_along_axis(heads, fields[:, None] + np.arange(8), axis=1).astype(np.int64)
    digits[np.arange(8) >= widths[:, None]] = 0
    sizes = digits @ _POWERS + 256 * (widths == 2)
    is_frame = (heads[:, :4] == _FRAME_MAGIC).all(axis=1) & (widths > 0)
    return np.where(is_frame, sizes, -1)


def _footer(count: int) -> bytes:
    """Return the end of a seek table: number of frames, no checksums, and the magic number."""
    return count.to_bytes(4, "little") + b"\0" + _SEEKABLE.to_bytes(4, "little")
