"""docs/format.md is enough to read a tile: a decoder that follows it alone restores its test vectors."""

import base64
import math
import re
import struct

import numpy as np
import pytest
from numcodecs import Zstd
from support.tiles import spectra

from shards.config import REPOSITORY
from shards.format.codec_registry import PRESETS, build_codec

PAGE = (REPOSITORY / "docs/format.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^    [^\n]+\n)+", PAGE[PAGE.index("## Test vectors") :], re.MULTILINE)
TILE, PLAIN, PACKED, IN_BLOCKS, BOUNDED, BOUNDED_TILE = BLOCKS


def _values(block: str) -> list[list[int]]:
    return [[int(value) for value in line.split()] for line in block.splitlines()]


def _bytes(block: str) -> bytes:
    return base64.b64decode("".join(block.split()))


def _decode(data: bytes) -> list[list[int]]:
    """The page, in plain Python."""
    magic, version, flags, zero = struct.unpack("<4sBBH", data[:8])
    assert (version, zero) == (1, 0)
    bands, height, width, low_size, high_size = struct.unpack("<5I", data[8:28])
    pixels, count = height * width, {b"SPRD": 4, b"SPRB": 5}[magic]
    middle = 28 + bands * count * 2
    numbers = struct.unpack(f"<{bands * count}h", data[28:middle])
    marked = data[middle : middle + bands]
    begin = middle + bands
    low, high = data[begin : begin + low_size], data[begin + low_size :]
    assert len(high) == high_size
    decompress = _decompress_blocks if flags & 2 else Zstd().decode
    low = bytes(decompress(low)) if flags & 1 else low
    high = bytes(decompress(high)) if any(marked) else b""
    restored: list[list[int]] = []
    for band in range(bands):
        coefficients = numbers[band * count : (band + 1) * count]
        row = sum(marked[:band])
        values = []
        for pixel in range(pixels):
            code = low[band * pixels + pixel] + (256 * high[row * pixels + pixel] if marked[band] else 0)
            below = [restored[band - k][pixel] if band >= k else 0 for k in (1, 2, 3)]
            values.append(_value(code, _prediction(coefficients, below), coefficients[4] if count == 5 else 0))
        restored.append(values)
    return restored


def _decompress_blocks(plane: bytes) -> bytes:
    """The blocks one by one, by their sizes in the seek table."""
    count, zero, magic = struct.unpack("<IBI", plane[-9:])
    assert (zero, magic) == (0, 0x8F92EAB1)
    table = plane[-(8 + 8 * count + 9) :]
    assert struct.unpack("<II", table[:8]) == (0x184D2A5E, 8 * count + 9)
    blocks, begin = [], 0
    for number in range(count):
        size, content = struct.unpack_from("<II", table, 8 + 8 * number)
        blocks.append(bytes(Zstd().decode(plane[begin : begin + size])))
        assert len(blocks[-1]) == content == 65536 or number == count - 1
        begin += size
    assert begin + len(table) == len(plane)
    return b"".join(blocks)


def _prediction(coefficients: tuple[int, ...], below: list[int]) -> int:
    single = np.float32
    p = single(coefficients[3])
    for coefficient, value in zip(coefficients, below, strict=False):
        p = p + single(coefficient) / single(2048) * single(value)
    clipped = min(max(p, single(-32768)), single(32767))
    return math.floor(clipped + single(32768.5)) - 32768


def _value(code: int, prediction: int, bound: int) -> int:
    if bound == 0:
        return (prediction + _unzigzag(code) + 32768) % 65536 - 32768
    if code < 2:
        return (-32768, 0)[code]
    return min(max(prediction + _unzigzag(code - 2) * (2 * bound + 1), -32767), 32767)


def _unzigzag(code: int) -> int:
    return code // 2 if code % 2 == 0 else -(code + 1) // 2


@pytest.mark.parametrize(("block", "tile"), [(PLAIN, TILE), (PACKED, TILE), (IN_BLOCKS, TILE), (BOUNDED, BOUNDED_TILE)])
def test_a_decoder_that_follows_the_page_restores_the_vectors(block, tile):
    assert _decode(_bytes(block)) == _values(tile)


@pytest.mark.parametrize(
    ("block", "config"),
    [
        (PLAIN, {"id": "spectral_predictor", "pack_low": False}),
        (PACKED, {"id": "spectral_predictor", "pack_low": True}),
        (IN_BLOCKS, {"id": "spectral_predictor", "pack_low": True, "blocks": True}),
        (BOUNDED, {"id": "bounded_predictor", "max_error": "3"}),
    ],
)
def test_the_vectors_are_what_the_codecs_write(block, config):
    tile = np.asarray(_values(TILE), np.int16).reshape(5, 3, 4)
    assert build_codec(config).encode(tile) == _bytes(block)
    assert str(config).replace("'", '"').replace("False", "false").replace("True", "true") in PAGE


@pytest.mark.parametrize(
    "codec", [PRESETS["compact"], build_codec({"id": "bounded_predictor", "max_error": "noise/2"})]
)
def test_it_reads_real_spectra_too(codec):
    _compare_with_the_codec(codec, 6)


@pytest.mark.parametrize("pack_low", [True, False])
def test_it_reads_planes_of_several_blocks(pack_low):
    _compare_with_the_codec(build_codec({"id": "spectral_predictor", "pack_low": pack_low, "blocks": True}), 45)


def _compare_with_the_codec(codec, size):
    encoded = codec.encode(spectra(5, size, bands=40))
    assert _decode(encoded) == codec.decode(encoded).reshape(40, -1).tolist()
