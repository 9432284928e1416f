"""Tile tables: what goes in comes out, and damage is one error or harmless, never other rows."""

from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.format import table

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: not text.endswith("\0"))
VALUES = {
    "M8[D]": st.none() | st.dates().map(date.isoformat),
    "f4": st.none() | st.floats(-180, 180, width=32),
    "u4": st.integers(0, 2**32 - 1),
    "u8": st.integers(0, 2**64 - 1),
}
ROW = st.fixed_dictionaries(
    dict.fromkeys(table.TEXT, WORDS) | {name: VALUES[kind] for name, kind in table.NUMBERS.items()}
)
SHARDS = st.lists(st.lists(ROW, max_size=4), min_size=1, max_size=3)


def _columns(rows):
    return {name: [row[name] for row in rows] for name in table.COLUMNS}


def _join(shards):
    return table.join([_columns(rows) for rows in shards], range(len(shards)))


def _row(stored):
    """A row as the index holds it."""
    found = {name: stored[name].item() for name in table.NUMBERS} | {name: stored[name].decode() for name in table.TEXT}
    found["date"] = found["date"] and found["date"].isoformat()
    return {name: None if value != value else value for name, value in found.items()}


def _filled():
    row = {name: 0 for name in table.NUMBERS} | {name: "a" for name in table.TEXT} | {"date": "2022-07-24"}
    return _join([[row, row | {"key": "上海"}], [row]])


@settings(max_examples=40, deadline=None)
@given(SHARDS)
def test_rows_come_out_as_they_went_in(shards):
    found = table.from_bytes(table.to_bytes(_join(shards)), "tiles.npy")
    rows = [row for shard in shards for row in shard]
    assert [_row(stored) for stored in found] == rows
    assert found["shard"].tolist() == [number for number, shard in enumerate(shards) for _ in shard]
    places = list(dict.fromkeys(row["location"] for row in rows))
    assert found["location_id"].tolist() == [places.index(row["location"]) for row in rows]


@settings(max_examples=40, deadline=None)
@given(SHARDS)
def test_equal_rows_are_equal_bytes(shards):
    stored = table.to_bytes(_join(shards))
    assert table.to_bytes(table.from_bytes(stored, "tiles.npy")) == stored


@settings(max_examples=150, deadline=None)
@given(ROW, st.sampled_from(table.COLUMNS), st.text(max_size=5) | st.integers() | st.sampled_from(["\ud800", "a\0"]))
def test_a_wrong_value_is_refused_by_the_name_of_its_column_or_kept_as_it_is(row, name, value):
    if (name in table.TEXT) != isinstance(value, str) and table.NUMBERS.get(name) != "M8[D]":
        return  # types are checked when an index is parsed
    try:
        found = _row(_join([[row | {name: value}]])[0])
    except ShardError as error:
        assert f"column '{name}' of the indexes: " in str(error) and len(str(error).splitlines()) == 1
        return
    wanted = value or None if table.NUMBERS.get(name) == "M8[D]" else value
    assert found[name] == (pytest.approx(value, rel=1e-6) if table.NUMBERS.get(name) == "f4" else wanted)


@pytest.mark.parametrize("value", ["today", "now", "2022", "2022-07", "NaT", "2022-13-01", "2022-07-24T10:00"])
def test_what_is_no_day_is_refused(value):
    row = {name: 0 for name in table.NUMBERS} | {name: "" for name in table.TEXT}
    with pytest.raises(ShardError, match="column 'date' of the indexes: "):
        _join([[row | {"date": value}]])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_has_the_same_columns_and_as_many_rows(data):
    """The rows themselves are covered by the hash in the manifest."""
    whole = table.to_bytes(_filled())
    header = len(whole) - _filled().nbytes
    begin = data.draw(st.integers(0, header - 1))
    damaged = (
        whole[:begin] + data.draw(st.binary(min_size=1, max_size=8)) + whole[begin + data.draw(st.integers(0, 8)) :]
    )
    try:
        found = table.from_bytes(damaged, "tiles.npy")
    except ShardError as error:
        assert str(error).startswith("tiles.npy: not a tile table (") and len(str(error).splitlines()) == 1
        return
    assert len(found) <= len(_filled())
    assert {*table.COLUMNS, "shard", "location_id"} <= set(found.dtype.names)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_file_that_ends_early_is_refused(length):
    whole = table.to_bytes(_filled())
    with pytest.raises(ShardError, match=r"^tiles\.npy: not a tile table \("):
        table.from_bytes(whole[: length % len(whole)], "tiles.npy")


@settings(max_examples=60, deadline=None)
@given(SHARDS, st.integers(0, 2**64))
def test_places_are_refused_exactly_where_a_tile_lies_beyond_its_shard(shards, size):
    joined = _join(shards)
    ends = [row[f"{part}offset"] + row[f"{part}length"] for rows in shards for row in rows for part in ("", "mask_")]
    sizes = np.full(len(shards), min(size, 2**64 - 1), "u8")
    if max(ends, default=0) <= sizes[0]:
        table.check_spans(joined, sizes)
    else:
        with pytest.raises(ValueError, match="lies beyond the end of its shard"):
            table.check_spans(joined, sizes)
