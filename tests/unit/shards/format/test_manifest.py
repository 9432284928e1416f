"""Manifests and indexes: they read back the same, and a changed byte changes nothing or is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.format.manifest import (
    FORMAT,
    Manifest,
    Rejected,
    ShardEntry,
    ShardIndex,
    Sums,
    TileColumns,
    parse_json,
    to_json,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
SHA = st.sampled_from(["0" * 64, "af" * 32])
COUNTS = st.integers(0, 2**63 - 1)
WHOLE = st.integers(-(2**63) + 1, 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SIZE = 2**63 - 1


@st.composite
def sums(draw, bands):
    def column(values):
        return draw(st.lists(values, min_size=bands, max_size=bands))

    squares = st.integers(0, 2**96 - 1)
    return Sums(
        count=column(COUNTS), total=column(WHOLE), squares=column(squares), low=column(WHOLE), high=column(WHOLE)
    )


@st.composite
def indexes(draw):
    tiles = draw(st.integers(0, 3))
    kinds = {
        **dict.fromkeys(("key", "location", "timestamp", "scene", "split"), TEXTS),
        **dict.fromkeys(("offset", "mask_offset"), st.integers(0, SIZE - 2**32)),
        **dict.fromkeys(("length", "mask_length"), st.integers(0, 2**32 - 1)),
        **dict.fromkeys(("checksum", "mask_checksum"), st.integers(0, 2**64 - 1)),
        "date": st.none() | TEXTS,
    }
    columns = {
        name: draw(st.lists(kinds.get(name, st.none() | FLOATS), min_size=tiles, max_size=tiles))
        for name in TileColumns.model_fields
    }
    return ShardIndex(
        format=FORMAT,
        shard="shard-000000.tar",
        size=SIZE,
        sha256=draw(SHA),
        tiles=TileColumns(**columns),
        sums=draw(sums(draw(st.integers(0, 3)))),
        rejected=[Rejected(path=path, reason="dead") for path in draw(st.lists(TEXTS, max_size=2))],
    ).sealed()


@st.composite
def manifests(draw):
    bands = draw(st.integers(1, 3))
    numbers = st.lists(FLOATS, min_size=bands, max_size=bands)
    names = [f"shard-{number:06d}.tar" for number in range(draw(st.integers(0, 2)))]
    counts = {name: draw(COUNTS) for name in ("generations", "tiles", "locations", "rejected")}
    columns = {name: draw(numbers) for name in ("wavelength_nm", "fwhm_nm", "mean", "std")}
    return Manifest(
        format=FORMAT,
        content_hash=draw(SHA),
        sensor=draw(TEXTS),
        scale=draw(FLOATS),
        nodata=draw(WHOLE),
        tile_shape=[bands, 8, 8],
        dtype="int16",
        codec=draw(st.dictionaries(TEXTS, TEXTS | WHOLE | st.booleans(), max_size=2)),
        sums=draw(sums(bands)),
        table="tiles-000.npy",
        table_sha256=draw(SHA),
        shards=[ShardEntry(name=name, tiles=1, size=2, sha256=draw(SHA), index_sha256=draw(SHA)) for name in names],
        **counts,
        **columns,
    ).sealed()


@settings(max_examples=40, deadline=None)
@given(indexes() | manifests())
def test_what_is_written_reads_back_the_same(model):
    written = to_json(model)
    again = parse_json(written.encode(), type(model), "x.json")
    assert again == model
    assert to_json(again) == written


@settings(max_examples=80, deadline=None)
@given(indexes() | manifests(), st.data())
def test_changed_bytes_are_refused_unless_they_say_the_same(model, data):
    whole = to_json(model).encode()
    begin = data.draw(st.integers(0, len(whole) - 1))
    instead = data.draw(st.binary(max_size=3) | st.sampled_from([b"0", b"-", b"e", b" ", b'"', b"}", b"null"]))
    damaged = whole[:begin] + instead + whole[begin + data.draw(st.integers(0, 4)) :]
    try:
        assert parse_json(damaged, type(model), "x.json") == model
    except ShardError as error:
        assert str(error).startswith("x.json: ") and len(str(error).splitlines()) == 1


@settings(max_examples=40, deadline=None)
@given(indexes(), st.integers(1, 10**6))
def test_a_file_that_ends_early_is_refused(index, missing):
    whole = to_json(index).rstrip().encode()
    with pytest.raises(ShardError, match=r"^x\.json: "):
        parse_json(whole[: -(1 + missing % len(whole))], ShardIndex, "x.json")


@settings(max_examples=40, deadline=None)
@given(indexes(), st.sampled_from(list(TileColumns.model_fields)))
def test_columns_of_different_lengths_are_refused_even_under_a_right_seal(index, name):
    longer = index.tiles.model_copy(update={name: [*getattr(index.tiles, name), None]})
    changed = index.model_copy(update={"tiles": longer}).sealed()
    with pytest.raises(ShardError, match=r"^x\.json: damaged: "):
        parse_json(to_json(changed).encode(), ShardIndex, "x.json")
