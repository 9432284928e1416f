"""The tile codec: lossless for every int16 tile, the same bytes everywhere, and safe on damaged bytes."""

import hashlib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.tiles import NODATA, spectra

from shards.errors import ShardError
from shards.format.codec import RawTile, SpectralPredictor
from shards.format.codec_registry import PRESETS, build_codec
from shards.format.planes import BOUND, HIGH_ROW, PixelwiseCodec, same_codes
from shards.format.row_predictor import RowPredictor
from shards.format.statistics import BandSums
from shards.sensors.sensor import get_sensor
from shards.sources.geotiff import read_tile
from shards.sources.layouts import find_tiles

ENCODED = {
    "raw": "77bac85f12461e98f5854a394d5eb280615048f7dcc2e7ce459f360ccd115f18",
    "fast": "68a1175e682bb739a3b6763c249735293af6bb5f1169a5399367a83eca916b3b",
    "compact": "afb01d85e5399a35a7aedf9cff7e9380d5d13f77dbaceb5ac37a628f0356d52c",
    "smallest": "52fccc1eef4b641a7a82e761f520a8a351d7a0b1b52b4020b8abda7c9d3ff8ff",
    "fast in blocks": "03b9a61948c0099989297c7ae1c2574bee1c2349d3832da2dbe89c035a3d8d49",
    "compact in blocks": "883c9295e86f440dfaec55ef8cf23cac2164871639a4bf429a2fd8a6a7541bce",
    "row, stored low plane": "a756a655e1912b469323e1524664a3d4a56a2e588dfbbb0ce028295d7ab49922",
}
BLOCKS = {
    "fast in blocks": SpectralPredictor(pack_low=False, blocks=True),
    "compact in blocks": SpectralPredictor(pack_low=True, blocks=True),
}
CODECS = PRESETS | BLOCKS | {"row, stored low plane": RowPredictor(pack_low=False)}
few = settings(max_examples=40, deadline=None, database=None)
shapes = st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9) | st.integers(15, 36))
values = st.one_of(
    st.integers(-32768, 32767), st.sampled_from([-32768, 32767, 0, -1]), st.just(NODATA), st.integers(-500, 0)
)


@pytest.fixture(params=CODECS)
def codec(request):
    return CODECS[request.param]


def _round_trip(codec, tile):
    return codec.decode(codec.encode(tile), np.full(tile.shape, 99, np.int16))


def _fixed_tile(bands=24, size=20):
    """From whole numbers alone: the same on every machine."""
    band, row, column = np.mgrid[0:bands, 0:size, 0:size]
    return ((band * 97 + row * row * 3 + column * 11 + (row * column * band) % 53) % 6000 - 300).astype(np.int16)


@few
@given(st.data(), st.sampled_from(sorted(CODECS)))
def test_any_tile_comes_back_exactly(data, preset):
    shape = data.draw(shapes)
    elements = values if data.draw(st.booleans()) else st.just(data.draw(values))
    tile = data.draw(arrays.arrays(np.int16, shape, elements=elements))
    np.testing.assert_array_equal(_round_trip(CODECS[preset], tile), tile)


def _edge_tiles():
    rng = np.random.default_rng(0)
    shape = (30, 16, 24)
    noise = rng.integers(-32768, 32768, shape).astype(np.int16)
    margin = spectra(1, 24, bands=30)[:, :16]
    margin[:, :, :9] = NODATA
    yield "noise", noise
    yield "constant", np.full(shape, 1234, np.int16)
    yield "all nodata", np.full(shape, NODATA, np.int16)
    yield "saturated", np.full(shape, 32767, np.int16)
    yield "extremes", np.where(noise > 0, np.int16(32767), np.int16(-32768))
    yield "negative", (-np.abs(noise.astype(np.int32)) // 2).astype(np.int16)
    yield "nodata margin", margin
    yield "dead band", np.where(np.arange(30)[:, None, None] == 7, np.int16(NODATA), spectra(2, 24, bands=30)[:, :16])
    yield "one pixel", noise[:, :1, :1]
    yield "not in C order", np.asfortranarray(noise)


@pytest.mark.parametrize(("name", "tile"), _edge_tiles(), ids=lambda value: value if isinstance(value, str) else "")
def test_edge_tiles_come_back_exactly(codec, name, tile):
    np.testing.assert_array_equal(_round_trip(codec, tile), tile)


@pytest.mark.parametrize("preset", sorted(CODECS))
def test_the_encoded_bytes_are_pinned(preset):
    """Other bytes for the same tile are another format: shards written on different nodes must be equal."""
    assert hashlib.sha256(CODECS[preset].encode(_fixed_tile())).hexdigest() == ENCODED[preset]


def test_bytes_are_read_wherever_they_lie(codec):
    tile = spectra(0, 8)
    encoded = codec.encode(tile)
    shifted = bytearray(b"x" + encoded)
    for data in (bytearray(encoded), memoryview(encoded), np.frombuffer(encoded, np.uint8), memoryview(shifted)[1:]):
        np.testing.assert_array_equal(codec.decode(data, np.empty_like(tile)), tile)


def test_without_a_buffer_a_new_array_comes_back():
    tile = spectra(0, 8)
    for preset in ("fast", "compact", "smallest"):
        np.testing.assert_array_equal(PRESETS[preset].decode(PRESETS[preset].encode(tile)), tile)
    np.testing.assert_array_equal(RawTile().decode(RawTile().encode(tile)), tile.reshape(-1))


def test_a_tile_of_another_shape_is_refused(codec):
    encoded = codec.encode(spectra(0, 8))
    with pytest.raises(ShardError):
        codec.decode(encoded, np.empty((202, 8, 9), np.int16))


@pytest.mark.parametrize("out", [np.empty((202, 8, 8), np.int32), np.empty((202, 8, 16), np.int16)[:, :, ::2]])
def test_a_buffer_that_cannot_be_filled_in_place_is_refused(codec, out):
    with pytest.raises(ValueError, match="C-contiguous int16"):
        codec.decode(codec.encode(spectra(0, 8)), out)


@pytest.mark.parametrize(
    "tile", [np.zeros((2, 3), np.int16), np.zeros((2, 3, 3), np.uint16), np.zeros((0, 3, 3), np.int16)]
)
def test_only_int16_tiles_are_encoded(codec, tile):
    with pytest.raises(ValueError, match="int16 tile"):
        codec.encode(tile)


def test_truncated_bytes_are_refused(codec):
    tile = spectra(0, 8)
    encoded = codec.encode(tile)
    for length in {0, 1, 10, 27, 28, 29, 500, len(encoded) // 2, len(encoded) - 1}:
        with pytest.raises(ShardError):
            codec.decode(encoded[:length], np.empty_like(tile))
    with pytest.raises(ShardError):
        codec.decode(encoded + b"\0", np.empty_like(tile))


def test_wrong_bytes_are_refused_or_decode_to_something_but_never_crash(codec):
    """Checksums find wrong bytes; here nothing worse than a clear error may come of them."""
    rng, tile = np.random.default_rng(5), spectra(0, 8)
    encoded, out = codec.encode(tile), np.empty_like(tile)
    positions = [*range(64), *rng.integers(0, len(encoded), 300), *range(len(encoded) - 40, len(encoded))]
    for position in positions:
        data = bytearray(encoded)
        data[position] ^= int(rng.integers(1, 256))
        try:
            codec.decode(data, out)
        except ShardError as error:
            assert len(str(error).splitlines()) == 1


def test_a_hostile_header_allocates_and_overruns_nothing():
    encoded = bytearray(PRESETS["compact"].encode(spectra(0, 8)))
    encoded[8:20] = b"\xff" * 12  # bands, height and width beyond all memory
    with pytest.raises(ShardError):
        PRESETS["compact"].decode(encoded)


@pytest.mark.parametrize("preset", ["compact", "smallest"])
def test_a_forged_height_allocates_nothing(preset):
    encoded = bytearray(PRESETS[preset].encode(spectra(0, 8)))
    encoded[12:16] = (8000).to_bytes(4, "little")  # a tile that Zstandard could pack into as many bytes
    tracemalloc.start()
    try:
        with pytest.raises(ShardError):
            PRESETS[preset].decode(encoded)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_threads_decode_side_by_side(codec):
    tiles = [spectra(seed, 16) for seed in range(6)]
    encoded = [codec.encode(tile) for tile in tiles]

    def check(number):
        tile = tiles[number % 6]
        return np.array_equal(codec.decode(encoded[number % 6], np.empty_like(tile)), tile)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(60)))


def test_a_codec_is_built_again_from_its_config(codec):
    assert numcodecs.get_codec(codec.get_config()) == codec
    assert build_codec(codec.get_config()).get_config() == codec.get_config()


def test_fast_is_read_by_fast_alone():
    with pytest.raises(ShardError, match="not written by"):
        SpectralPredictor(pack_low=True).decode(SpectralPredictor(pack_low=False).encode(spectra(0, 8)))


def test_codecs_that_differ_in_compression_share_their_codes():
    tile = spectra(0, 24)
    for of_kind in (SpectralPredictor, RowPredictor):
        codecs = [of_kind(pack_low, blocks) for pack_low in (False, True) for blocks in (False, True)]
        for before in codecs:
            encoded = before.encode(tile)
            for after in codecs:
                assert same_codes(before, after)
                assert after.recompress(encoded, before) == after.encode(tile)
    assert not same_codes(SpectralPredictor(True), RowPredictor(True))


def test_neither_predictor_reads_the_other_s_tiles():
    tile = spectra(0, 8)
    with pytest.raises(ShardError, match="not written by"):
        RowPredictor(True).decode(SpectralPredictor(True).encode(tile))
    with pytest.raises(ShardError, match="not written by"):
        SpectralPredictor(True).decode(RowPredictor(True).encode(tile))


@pytest.mark.parametrize("width", [1, 15, 16, 17, 32, 33])
def test_rows_are_restored_in_vectors_and_blocks(width, monkeypatch):
    tile = np.concatenate([spectra(number, 33, bands=12) for number in range(3)], axis=1)[:, :, :width]
    encoded = PRESETS["smallest"].encode(np.ascontiguousarray(tile))
    for block in (1, 40, 1 << 14):
        monkeypatch.setattr("shards.format.row_predictor.BLOCK", block)
        np.testing.assert_array_equal(PRESETS["smallest"].decode(encoded), tile)


def test_blocks_are_read_by_codecs_with_blocks_alone():
    tile = spectra(0, 24)  # two blocks
    for name, codec in BLOCKS.items():
        preset = PRESETS[name.split()[0]]
        np.testing.assert_array_equal(_round_trip(codec, tile), tile)
        with pytest.raises(ShardError, match="not written by"):
            codec.decode(preset.encode(tile))
        with pytest.raises(ShardError, match="not written by"):
            preset.decode(codec.encode(tile))


def test_planes_are_unpacked_into_the_bytes_of_a_tile(codec):
    if not isinstance(codec, PixelwiseCodec):
        return
    tile = spectra(0, 24)
    out = np.full(tile.shape, 99, np.int16)
    bands = codec.unpack(codec.encode(tile), out)
    rows = out.view(np.uint8).reshape(404, -1)
    high_rows = bands[:, HIGH_ROW]
    high = np.where(high_rows[:, None] < 0, 0, rows[high_rows].astype(int))
    codes = rows[:202] + 256 * high
    values = np.where(codes % 2, -(codes + 1) // 2, codes // 2)
    first = tile[0].reshape(-1) - bands[0, 3]  # nothing lies below the first band
    np.testing.assert_array_equal(values[0].astype(np.int16), first.astype(np.int16))
    assert sorted(high_rows[high_rows >= 0]) == list(range(202, 202 + np.count_nonzero(high_rows >= 0)))
    assert not bands[:, BOUND].any()
    with pytest.raises(ShardError, match="expected"):
        codec.unpack(codec.encode(tile), np.empty((202, 12, 48), np.int16))


def test_band_sums_are_those_of_the_valid_pixels():
    tile = spectra(4, 16)
    tile[11] = NODATA
    sums, flat = BandSums.of(tile), tile.reshape(202, -1).astype(np.int64)
    valid = flat != NODATA
    assert sums.count == valid.sum(1).tolist()
    assert sums.total == np.where(valid, flat, 0).sum(1).tolist()
    assert sums.squares == np.where(valid, flat * flat, 0).sum(1).tolist()
    assert sums.low == np.where(valid, flat, 32767).min(1).tolist()
    assert sums.high == np.where(valid, flat, -32767).max(1).tolist()


def _ratio(preset, tiles):
    return sum(tile.nbytes for tile in tiles) / sum(len(CODECS[preset].encode(tile)) for tile in tiles)


def _real_tiles(folder):
    sensor = get_sensor("enmap")
    return [read_tile(folder / tile.path, sensor).values for tile in find_tiles(folder, "enmap")]


def test_published_like_tiles_are_as_small_as_promised(spectral_earth_sample):
    tiles = _real_tiles(spectral_earth_sample)
    assert _ratio("compact", tiles) >= 2.6
    assert _ratio("fast", tiles) >= 1.9
    assert _ratio("smallest", tiles) >= 2.7


def test_real_tiles_are_as_small_as_promised(enmap_potsdam):
    tiles = _real_tiles(enmap_potsdam)
    mosaic = np.concatenate([np.concatenate(tiles[i : i + 3], axis=2) for i in range(0, 18, 3)], axis=1)
    for cut in ([mosaic], tiles):  # the filled blocks as one tile, and each for itself
        assert _ratio("compact", cut) >= 2.45
        assert _ratio("fast", cut) >= 1.9
        assert _ratio("compact in blocks", cut) >= 1.005 * _ratio("compact", cut)
        assert _ratio("smallest", cut) >= 1.025 * _ratio("compact in blocks", cut)
    assert _ratio("smallest", [mosaic]) >= 2.7
