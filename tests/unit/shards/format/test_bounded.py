"""The codec with a bound on errors: no pixel beyond it, missing values and zeros exact, the same bytes everywhere."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.tiles import NODATA, spectra

from shards.errors import ShardError
from shards.format.bounded import MOST_ERROR, BoundedPredictor, noise, parse_max_error
from shards.format.codec import SpectralPredictor
from shards.format.codec_registry import build_codec
from shards.format.error_bounds import error_bounds, violation
from shards.format.least_squares import fit

few = settings(max_examples=60, deadline=None, database=None)
shapes = st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))
values = st.one_of(
    st.integers(-32768, 32767),
    st.sampled_from([NODATA, -32767, 32767, 0, 1, -1]),
    st.integers(-500, 500),
)


def _noisy(sigma: np.ndarray, size: int = 64) -> np.ndarray:
    """A tile of smooth spectra with white noise of a known deviation in each band."""
    rng = np.random.default_rng(0)
    band, row, column = np.mgrid[0 : len(sigma), 0:size, 0:size]
    smooth = 3000 + 20 * band + 400 * np.sin(row / 9) + 300 * np.cos(column / 7)
    return np.rint(smooth + sigma[:, None, None] * rng.standard_normal(smooth.shape)).astype(np.int16)


@few
@given(st.data(), st.sampled_from(["1", "3", str(MOST_ERROR), "noise/4", "noise/1"]))
def test_no_pixel_of_any_tile_is_beyond_its_bound(data, max_error):
    tile = data.draw(arrays.arrays(np.int16, data.draw(shapes), elements=values))
    codec = BoundedPredictor(max_error)
    encoded = codec.encode(tile)
    stored = codec.decode(encoded, np.full(tile.shape, 99, np.int16))
    bounds = codec.bounds(encoded)[:, None, None]
    assert (np.abs(tile.astype(int) - stored) <= bounds).all()
    np.testing.assert_array_equal(stored == NODATA, tile == NODATA)
    assert (stored[tile == 0] == 0).all()
    assert not violation(tile, stored, error_bounds(codec, encoded))
    if max_error.isdigit():
        assert (bounds == int(max_error)).all()


def test_tiles_of_noise_and_extremes_stay_within_the_bound():
    random = np.random.default_rng(0).integers(-32768, 32768, (30, 40, 60)).astype(np.int16)
    for tile in (random, np.full((5, 8, 8), 32767, np.int16), np.where(random > 0, np.int16(32767), np.int16(-32767))):
        codec = BoundedPredictor(7)
        assert np.abs(tile.astype(int) - codec.decode(codec.encode(tile)))[tile != NODATA].max() <= 7


def test_errors_reach_the_bound_and_do_not_grow_over_the_bands():
    tile, codec = spectra(3, 48), BoundedPredictor(5)
    error = np.abs(tile.astype(int) - codec.decode(codec.encode(tile)))
    assert error.max() == 5
    deviation = error.std((1, 2))
    assert deviation[-20:].mean() == pytest.approx(deviation[10:30].mean(), rel=0.1)


def test_a_larger_bound_makes_smaller_files():
    tile = spectra(3, 48)
    sizes = [len(SpectralPredictor(True).encode(tile)), *(len(BoundedPredictor(e).encode(tile)) for e in (1, 3, 10))]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[3] < 0.75 * sizes[0]


def test_noise_is_estimated_to_within_a_fifth():
    sigma = np.linspace(4.0, 30.0, 40)
    tile = _noisy(sigma)
    flat = tile.reshape(len(tile), -1)
    estimated = noise(flat, tile.shape[2], fit(flat, tile.shape[2]))
    np.testing.assert_allclose(estimated[3:], sigma[3:], rtol=0.2)


def test_the_bound_is_a_share_of_the_noise_of_each_band():
    sigma = np.linspace(8.0, 60.0, 40)
    codec = BoundedPredictor("noise/4")
    bounds = codec.bounds(codec.encode(_noisy(sigma)))
    np.testing.assert_allclose(bounds[3:], sigma[3:] / 4, rtol=0.25, atol=1)


@pytest.mark.parametrize("tile", [np.full((6, 8, 8), NODATA, np.int16), np.full((6, 8, 8), 700, np.int16)])
def test_tiles_without_noise_are_lossless(tile):
    codec = BoundedPredictor("noise/4")
    encoded = codec.encode(tile)
    assert not codec.bounds(encoded).any()
    np.testing.assert_array_equal(codec.decode(encoded), tile)


def test_the_encoded_bytes_are_pinned():
    band, row, column = np.mgrid[0:24, 0:20, 0:20]
    tile = ((band * 97 + row * row * 3 + column * 11 + (row * column * band) % 53) % 6000 - 300).astype(np.int16)
    assert {error: hashlib.sha256(BoundedPredictor(error).encode(tile)).hexdigest()[:16] for error in PINNED} == PINNED


PINNED = {"3": "ebcf6c859bc95e88", "noise/4": "a9a4dfd144209116"}


def test_a_manifest_s_codec_is_built_again():
    codec = BoundedPredictor("noise/4")
    again = build_codec(codec.get_config())
    tile = spectra(0, 16)
    np.testing.assert_array_equal(again.decode(codec.encode(tile)), codec.decode(codec.encode(tile)))


@pytest.mark.parametrize("damage", [b"", b"SPRB", b"\0" * 400])
def test_damaged_bytes_are_an_error(damage):
    with pytest.raises(ShardError, match="does not decode"):
        BoundedPredictor(3).decode(damage)


def test_a_negative_bound_is_an_error():
    encoded = bytearray(BoundedPredictor(3).encode(spectra(0, 8)))
    encoded[28 + 8 : 28 + 10] = b"\xff\xff"  # the bound of the first band
    for read in (BoundedPredictor(3).decode, BoundedPredictor(3).bounds):
        with pytest.raises(ShardError, match="a bound is negative"):
            read(encoded)


def test_blocks_hold_the_same_values():
    tile = spectra(0, 24)
    codec, in_blocks = BoundedPredictor("noise/4"), BoundedPredictor("noise/4", blocks=True)
    encoded = in_blocks.encode(tile)
    np.testing.assert_array_equal(in_blocks.decode(encoded), codec.decode(codec.encode(tile)))
    assert build_codec(in_blocks.get_config()).get_config() == in_blocks.get_config()


def test_bytes_of_the_lossless_codec_are_refused():
    with pytest.raises(ShardError, match="not written by"):
        BoundedPredictor(3).decode(SpectralPredictor(True).encode(spectra(0, 8)))


@pytest.mark.parametrize(
    ("text", "means"), [("3", "3"), ("0.0003", "3"), (".001", "10"), ("noise/4", "noise/4"), ("noise/2.5", "noise/2.5")]
)
def test_bounds_are_digital_numbers_reflectance_or_a_share_of_the_noise(text, means):
    assert parse_max_error(text, 10000.0) == means


@pytest.mark.parametrize("text", ["0", "-1", "3.5", "noise", "noise/0", "noise/0.5", "sigma/4", "5000", "0.00001"])
def test_other_bounds_are_an_error(text):
    with pytest.raises(ValueError, match=f"'{text}': "):
        parse_max_error(text, 10000.0)


def test_a_violation_names_the_pixel():
    tile = spectra(0, 8)
    stored = tile.copy()
    stored[5, 2, 3] += 4
    assert not violation(tile, stored, 4)
    assert violation(tile, stored, 3).startswith("band 6, row 2, column 3: ")
    stored[5, 2, 3] = NODATA
    assert "-32768 instead of" in violation(tile, stored, np.full(len(tile), 32767))
