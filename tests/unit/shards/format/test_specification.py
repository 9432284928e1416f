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
TILE, PLAIN, PACKED, IN_BLOCKS, ROW, BOUNDED, BOUNDED_TILE = BLOCKS


def _values(block: str) -> list[list[int]]:
    return [[int(value) for value in line.split()] for line in block.splitlines()]


def _bytes(block: str) -> bytes:
    return base64.b64decode("".join(block.split()))


def _decode(data: bytes) -> list[list[int]]:
    """The page, in plain Python."""
    magic, version, flags, zero = struct.unpack("<4sBBH", data[:8])
    assert (version, zero) == (1, 0)
    bands, height, width, low_size, high_size = struct.unpack("<5I", data[8:28])
    pixels, count = height * width, {b"SPRD": 4, b"SPRB": 5, b"SPRR": 8}[magic]
    middle = 28 + bands * count * 2
    numbers = struct.unpack(f"<{bands * count}h", data[28:middle])
    marked = data[middle : middle + bands]
    begin = middle + bands
    low, high = data[begin : begin + low_size], data[begin + low_size :]
    assert len(high) == high_size
    decompress = _decompress_blocks if flags & 2 else Zstd().decode
    low = bytes(decompress(low)) if flags & 1 else low
    high = bytes(decompress(high)) if any(marked) else b""
    codes = []
    for band in range(bands):
        row = sum(marked[:band])
        lows = low[band * pixels : (band + 1) * pixels]
        highs = high[row * pixels : (row + 1) * pixels] if marked[band] else bytes(pixels)
        codes.append([small + 256 * large for small, large in zip(lows, highs, strict=True)])
    restore = _restore_rows if magic == b"SPRR" else _restore_pixels
    return restore(codes, [numbers[band * count : (band + 1) * count] for band in range(bands)], width)


def _restore_pixels(codes: list[list[int]], numbers: list[tuple[int, ...]], width: int) -> list[list[int]]:
    restored: list[list[int]] = []
    for band, (of_band, of_pixels) in enumerate(zip(numbers, codes, strict=True)):
        values = []
        for pixel, code in enumerate(of_pixels):
            below = [restored[band - k][pixel] if band >= k else 0 for k in (1, 2, 3)]
            values.append(_value(code, _prediction(of_band, below), of_band[4] if len(of_band) == 5 else 0))
        restored.append(values)
    return restored


def _restore_rows(codes: list[list[int]], numbers: list[tuple[int, ...]], width: int) -> list[list[int]]:
    restored: list[list[int]] = []
    residuals: list[list[int]] = []
    for band, ((c1, c2, c3, constant, w0, w1, w2, w3), of_pixels) in enumerate(zip(numbers, codes, strict=True)):
        values: list[int] = []
        clipped: list[int] = []
        errors = {}
        for pixel, code in enumerate(of_pixels):
            row, i = divmod(pixel, width)
            x1, x2, x3 = (restored[band - k][pixel] if band >= k else 0 for k in (1, 2, 3))
            r1, r2, r3 = (residuals[band - k][pixel] if band >= k else 0 for k in (1, 2, 3))
            left, above, right = (errors.get((row - 1, column), 0) for column in (i - 1, i, i + 1))
            u = _unzigzag(code)
            p = _wrap(_wrap(2048 * constant + 1024 + c1 * x1 + c2 * x2 + c3 * x3, 32) >> 11, 16)
            q = _wrap(w0 * (left + 2 * above + right) + w1 * r1 + w2 * r2 + w3 * r3 + 16, 16) >> 5
            e = _wrap(q + u, 16)
            values.append(_wrap(p + e, 16))
            clipped.append(_clip(u))
            errors[row, i] = _clip(e)
        restored.append(values)
        residuals.append(clipped)
    return restored


def _wrap(value: int, bits: int) -> int:
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half


def _clip(value: int) -> int:
    return min(max(value, -511), 511)


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


@pytest.mark.parametrize(
    ("block", "tile"), [(PLAIN, TILE), (PACKED, TILE), (IN_BLOCKS, TILE), (ROW, TILE), (BOUNDED, BOUNDED_TILE)]
)
def test_a_decoder_that_follows_the_page_restores_the_vectors(block, tile):
    assert _decode(_bytes(block)) == _values(tile)


@pytest.mark.parametrize(
    ("block", "config"),
    [
        (PLAIN, {"id": "spectral_predictor", "pack_low": False}),
        (PACKED, {"id": "spectral_predictor", "pack_low": True}),
        (IN_BLOCKS, {"id": "spectral_predictor", "pack_low": True, "blocks": True}),
        (ROW, {"id": "row_predictor", "pack_low": True, "blocks": True}),
        (BOUNDED, {"id": "bounded_predictor", "max_error": "3"}),
    ],
)
def test_the_vectors_are_what_the_codecs_write(block, config):
    tile = np.asarray(_values(TILE), np.int16).reshape(5, 3, 4)
    assert build_codec(config).encode(tile) == _bytes(block)
    assert str(config).replace("'", '"').replace("False", "false").replace("True", "true") in PAGE


@pytest.mark.parametrize(
    "codec", [PRESETS["compact"], PRESETS["smallest"], build_codec({"id": "bounded_predictor", "max_error": "noise/2"})]
)
def test_it_reads_real_spectra_too(codec):
    _compare_with_the_codec(codec, 6)


@pytest.mark.parametrize("pack_low", [True, False])
@pytest.mark.parametrize("name", ["spectral_predictor", "row_predictor"])
def test_it_reads_planes_of_several_blocks(name, pack_low):
    _compare_with_the_codec(build_codec({"id": name, "pack_low": pack_low, "blocks": True}), 45)


@pytest.mark.parametrize("width", [5, 16, 21])
def test_it_wraps_as_the_codec_does(width):
    """Any numbers and codes give a tile, in vectors of pixels and one by one."""
    rng = np.random.default_rng(width)
    codec = build_codec({"id": "row_predictor", "pack_low": False})
    encoded = bytearray(codec.encode(rng.integers(-32768, 32768, (6, 7, width)).astype(np.int16)))
    encoded[28 : 28 + 6 * 16] = rng.integers(-32768, 32768, 48).astype("<i2").tobytes()
    assert _decode(bytes(encoded)) == codec.decode(encoded).reshape(6, -1).tolist()


def _compare_with_the_codec(codec, size):
    encoded = codec.encode(spectra(5, size, bands=40))
    assert _decode(encoded) == codec.decode(encoded).reshape(40, -1).tolist()
