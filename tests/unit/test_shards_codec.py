"""The tile codec: lossless for every int16, and loud about bytes that are no tile."""

import json
from importlib import metadata

import google_crc32c
import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.tiles import NODATA, spectra

from shards.codec import FAST, SpectralDelta, build_codec
from shards.errors import ShardError

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
COMPRESSORS = [{"id": "zstd", "level": 3}, {"id": "lz4"}, {"id": "zlib", "level": 1}, FAST.get_config()["compressor"]]
few = settings(max_examples=60, deadline=None, database=None)


def _tiles(elements):
    return arrays.arrays(np.int16, SHAPES, elements=elements, fill=st.nothing())


def _assert_lossless(tile, codec=FAST):
    original = tile.copy()
    encoded = codec.encode(tile)
    np.testing.assert_array_equal(tile, original)
    out = np.full(tile.shape, 12345, dtype=np.int16)
    assert codec.decode(encoded, out) is out
    np.testing.assert_array_equal(out, original)


@few
@given(_tiles(st.integers(-32768, 32767)))
def test_any_values_come_back(tile):
    _assert_lossless(tile)


@few
@given(_tiles(st.sampled_from([-32768, -32767, -1, 0, 1, 32766, 32767])))
def test_saturated_values_come_back_though_their_differences_wrap(tile):
    _assert_lossless(tile)


@few
@given(_tiles(st.one_of(st.just(NODATA), st.integers(-496, 10439))))
def test_reflectances_with_missing_and_negative_pixels_come_back(tile):
    _assert_lossless(tile)


@few
@given(SHAPES, st.integers(-32768, 32767))
def test_constant_tiles_come_back(shape, value):
    _assert_lossless(np.full(shape, value, dtype=np.int16))


@pytest.mark.parametrize("shape", [(202, 128, 128), (202, 33, 17), (1, 64, 64), (224, 1, 1)])
def test_noise_of_full_range_comes_back_at_real_sizes(shape):
    _assert_lossless(np.random.default_rng(0).integers(-32768, 32768, shape).astype(np.int16))


def test_a_tile_that_is_a_view_comes_back():
    _assert_lossless(np.random.default_rng(1).integers(-999, 999, (8, 8, 202)).astype(np.int16).transpose(2, 0, 1))
    _assert_lossless(spectra(0, 16)[:, ::2, ::2])


def test_smooth_spectra_pack_better_than_without_the_difference():
    levels = np.random.default_rng(2).integers(-2000, 8000, (1, 32, 32))
    tile = (levels + 10 * np.arange(202)[:, None, None]).astype(np.int16)
    plain = numcodecs.get_codec(FAST.get_config()["compressor"]).encode(tile)
    assert len(FAST.encode(tile)) < len(plain) / 2


def test_the_same_tile_gives_the_same_bytes():
    assert FAST.encode(spectra(0, 16)) == FAST.encode(np.asfortranarray(spectra(0, 16)))


@pytest.mark.parametrize("tile", [np.zeros((4, 4, 4)), np.zeros((4, 4, 4), np.uint16), np.zeros((4, 4), np.int16)])
def test_what_is_no_int16_tile_is_not_encoded(tile):
    with pytest.raises(ValueError, match="expected an int16 tile"):
        FAST.encode(tile)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda config: config["id"])
def test_numcodecs_rebuilds_the_codec_from_its_json_config(compressor):
    config = json.loads(json.dumps(SpectralDelta(compressor).get_config()))
    codec = numcodecs.get_codec(config)
    assert isinstance(codec, SpectralDelta)
    assert codec.get_config() == SpectralDelta(compressor).get_config() == build_codec(config).get_config()
    _assert_lossless(spectra(3, 8), codec)


def test_the_codec_is_registered_with_numcodecs_for_programs_that_never_import_us():
    try:
        distribution = metadata.distribution("spectralforge")
    except metadata.PackageNotFoundError:
        pytest.skip("needs the package to be installed (pip install -e .)")
    points = [point for point in distribution.entry_points if point.group == "numcodecs.codecs"]
    assert [(point.name, point.load()) for point in points] == [("spectral_delta", SpectralDelta)]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"id": "delta"},
        {"id": "spectral_delta"},
        {"id": "spectral_delta", "compressor": {"id": "unheard-of"}},
        {"id": "spectral_delta", "compressor": {}},
        {"id": "spectral_delta", "compressor": FAST.get_config()["compressor"], "more": 1},
    ],
    ids=["nothing", "another codec", "no compressor", "unknown compressor", "empty compressor", "more keys"],
)
def test_a_codec_of_another_version_is_refused(config):
    with pytest.raises(ShardError, match="codec"):
        build_codec(config)


@pytest.mark.parametrize("stored", [(202, 4, 4), (202, 8, 4), (201, 8, 8), (202, 9, 9), (203, 8, 8)])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda config: config["id"])
def test_a_tile_of_another_shape_is_refused(compressor, stored):
    codec = SpectralDelta(compressor)
    with pytest.raises(ShardError):
        codec.decode(codec.encode(np.ones(stored, np.int16)), np.zeros((202, 8, 8), np.int16))


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda config: config["id"])
def test_bytes_that_were_never_encoded_are_refused(compressor):
    for data in (b"", b"\0" * 64, b"not a tile at all, but text" * 9):
        with pytest.raises(ShardError):
            SpectralDelta(compressor).decode(data, np.zeros((202, 8, 8), np.int16))


def test_a_buffer_that_cannot_be_filled_in_place_is_refused():
    tile = spectra(4, 8)
    for out in (np.zeros((8, 8, 202), np.int16).transpose(2, 0, 1), np.zeros((202, 8, 16), np.int16)[..., ::2]):
        with pytest.raises(ValueError):
            FAST.decode(FAST.encode(tile), out)


def test_truncated_bytes_are_refused_at_every_length():
    tile = spectra(4, 8)
    encoded = FAST.encode(tile)
    out = np.empty_like(tile)
    for length in [*range(64), *range(64, len(encoded), 97), len(encoded) - 1]:
        with pytest.raises(ShardError):
            FAST.decode(encoded[:length], out)


def test_a_flipped_byte_is_refused_or_left_to_the_checksum():
    tile = spectra(5, 8)
    encoded = FAST.encode(tile)
    rng = np.random.default_rng(6)
    for position in [*range(64), *rng.integers(64, len(encoded), 400).tolist()]:
        damaged = bytearray(encoded)
        damaged[position] ^= int(rng.integers(1, 256))
        out = np.zeros_like(tile)
        try:
            FAST.decode(bytes(damaged), out)
        except ShardError:
            continue
        assert google_crc32c.value(bytes(damaged)) != google_crc32c.value(encoded)
