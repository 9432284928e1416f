"""Planes in independent blocks: any decoder reads them whole, each block decodes alone, and damage is an error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Zstd

from shards.errors import ShardError
from shards.format.frames import BLOCK, block_sizes, compress, content_sizes, decompress

ZSTD = Zstd(level=1)
few = settings(max_examples=30, database=None)


def _plane(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 20, size).astype(np.int8).view(np.uint8)


def _restored(packed: np.ndarray, size: int, in_blocks: bool) -> np.ndarray:
    plane = np.full(size, 99, np.uint8)
    decompress(ZSTD, packed, plane, in_blocks)
    return plane


@few
@given(
    st.one_of(st.integers(1, 300), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])),
    st.integers(0, 3),
    st.booleans(),
)
def test_any_plane_comes_back(size, seed, in_blocks):
    plane = _plane(size, seed) if seed else np.zeros(size, np.uint8)
    packed = np.frombuffer(compress(ZSTD, plane, in_blocks), np.uint8)
    np.testing.assert_array_equal(_restored(packed, size, in_blocks), plane)


def test_a_plane_of_blocks_is_a_zstandard_stream_and_each_block_one_of_its_own():
    plane = _plane(2 * BLOCK + 500)
    packed = np.frombuffer(compress(ZSTD, plane, True), np.uint8)
    assert bytes(Zstd().decode(packed)) == plane.tobytes()
    sizes = block_sizes(packed, plane.size)
    assert len(sizes) == 3
    ends = np.cumsum(sizes)
    blocks = [packed[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    assert content_sizes(packed, ends - sizes).tolist() == [BLOCK, BLOCK, 500]
    assert b"".join(bytes(Zstd().decode(block)) for block in blocks) == plane.tobytes()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, BLOCK - 1, BLOCK, BLOCK + 255, BLOCK + 256, 5 * BLOCK])
def test_the_content_size_is_read_from_every_width_of_the_header(size):
    for level in (1, 19):
        frame = np.frombuffer(Zstd(level).encode(np.zeros(size, np.uint8)), np.uint8)
        assert content_sizes(frame, np.zeros(1, np.int64)).tolist() == [size]
    assert content_sizes(frame, np.array([1, frame.size - 1])).tolist() == [-1, -1]


def test_other_headers_of_frames_are_read():
    """With a window descriptor, a dictionary, eight bytes of size; without a size."""
    magic = b"\x28\xb5\x2f\xfd"
    heads = {
        magic + b"\x40\x50\x00\x01": 512,
        magic + b"\xe0" + (1 << 40).to_bytes(8, "little"): 1 << 40,
        magic + b"\x83\x50" + bytes(4) + (77777).to_bytes(4, "little"): 77777,
        magic + b"\x00\x50": -1,
        b"": -1,
    }
    for head, size in heads.items():
        assert content_sizes(np.frombuffer(head, np.uint8), np.zeros(1, np.int64)).tolist() == [size]


def test_a_plane_without_rows_has_no_block():
    assert block_sizes(np.frombuffer(compress(ZSTD, np.empty((0, 7), np.uint8), True), np.uint8), 0).size == 0


def test_damaged_blocks_are_an_error():
    plane = _plane(2 * BLOCK + 500)
    packed = compress(ZSTD, plane, True)
    cut = [packed[:length] for length in (0, 3, len(packed) - 1, len(packed) - 9)]
    one_frame = compress(ZSTD, plane, False)
    table = packed[-(8 + 3 * 8 + 9) :]
    swapped = bytearray(packed)
    swapped[-17:-13] = bytes(4)  # the size of the last block
    for damaged in (*cut, one_frame, one_frame + table, bytes(swapped)):
        with pytest.raises(ShardError, match="does not decode"):
            _restored(np.frombuffer(damaged, np.uint8), plane.size, True)
    for size in (BLOCK, 2 * BLOCK + 499, 2 * BLOCK + 501, 4 * BLOCK):
        with pytest.raises(ShardError, match="does not decode"):
            _restored(np.frombuffer(packed, np.uint8), size, True)


def test_blocks_of_other_sizes_are_an_error():
    """Their sum is right, but a decoder of blocks would write beyond one."""
    first, second = (compress(ZSTD, _plane(size), False) for size in (BLOCK + 100, BLOCK - 100))
    header = np.array([0x184D2A5E, 2 * 8 + 9], "<u4").tobytes()
    entries = np.array([len(first), BLOCK, len(second), BLOCK], "<u4").tobytes()
    footer = (2).to_bytes(4, "little") + b"\0" + (0x8F92EAB1).to_bytes(4, "little")
    with pytest.raises(ShardError, match="wrong length"):
        _restored(np.frombuffer(first + second + header + entries + footer, np.uint8), 2 * BLOCK, True)
