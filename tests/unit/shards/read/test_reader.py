"""Reading shards back: exact values, and every kind of damage as one line that names the file."""

import os
import re
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from support.datasets import keys_of, read_rows, refusal
from support.range_server import RangeServer

from shards.errors import ConfigError
from shards.read.reader import ShardReader, open_dataset

SHARD, INDEX, TABLE = "shard-000001.tar", "shard-000001.index.json", "tiles-000.npy"


@pytest.mark.parametrize("threads", [1, 4])
def test_values_are_exact_in_any_order_and_repeated(packed, opened, threads):
    folder, values = packed
    reader = opened(folder, threads)
    rows = np.random.default_rng(0).integers(0, len(reader), 64)
    for row, tile in zip(rows, read_rows(reader, rows), strict=True):
        np.testing.assert_array_equal(tile, values[reader.key(row)])


def test_rows_are_the_tiles_of_the_manifest_with_their_locations(packed, opened):
    folder, values = packed
    reader = opened(folder)
    assert len(reader) == len(set(keys_of(reader))) == reader.manifest.tiles == 10
    assert set(keys_of(reader)) == values.keys()
    assert [name.decode() for name in reader.table["location"]] == [key.split("_")[0] for key in keys_of(reader)]
    assert reader.tile_shape == (202, 8, 8)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_buffer_of_another_length_is_refused(packed, opened, threads, rows):
    reader = opened(packed[0], threads)
    with pytest.raises(ValueError):
        reader.read(range(rows), np.empty((2, *reader.tile_shape), np.int16))


@pytest.mark.parametrize("row", [10, 99])
def test_a_row_beyond_the_end_is_refused(packed, opened, row):
    reader = opened(packed[0])
    with pytest.raises(IndexError):
        read_rows(reader, [row])


def _open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count open files")
def test_each_shard_is_opened_once_and_closed_at_the_end(packed):
    before = _open_files()
    reader = ShardReader(packed[0])
    for _ in range(3):
        read_rows(reader, range(10))
    assert _open_files() == before + 3
    reader.close()
    assert _open_files() == before


def test_the_limit_of_open_files_is_raised_where_it_is_too_low(packed, opened):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        opened(packed[0])
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_dataset_is_a_sequence_of_tiles(packed):
    dataset = open_dataset(str(packed[0]))
    keys = [key.decode() for key in dataset.table["key"]]
    assert len(dataset) == len(keys) == 10
    tiles = list(dataset)
    for key, tile in zip(keys, tiles, strict=True):
        np.testing.assert_array_equal(tile, packed[1][key])
    np.testing.assert_array_equal(dataset[-1], tiles[-1])
    for row in (10, -11):
        with pytest.raises(IndexError, match=f"tile {row} of 10"):
            dataset[row]


def test_a_message_names_the_folder_as_the_user_wrote_it(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    (copy / SHARD).unlink()
    assert re.match(rf"shards/{SHARD}: ", refusal(lambda: ShardReader(Path("shards"))))


def _assert_all(reader, values):
    for key, tile in zip(keys_of(reader), read_rows(reader, range(len(reader))), strict=True):
        np.testing.assert_array_equal(tile, values[key])


@pytest.mark.parametrize("threads", [1, 4])
def test_shards_are_read_over_http_by_ranges(packed, threads):
    pytest.importorskip("aiohttp")
    folder, values = packed
    with RangeServer(folder) as server:
        reader = ShardReader(server.url, threads)
        _assert_all(reader, values)
        assert not any(name.endswith(".json") and "index" in name for name in server.requests)
        tars = sum(count for name, count in server.requests.items() if name.endswith(".tar"))
        assert tars == 10  # one request a tile
        server.fail = 2
        _assert_all(reader, values)
        reader.close()
        assert open_dataset(server.url, split=None)[0].shape == (202, 8, 8)


def test_a_missing_dataset_at_a_url_is_one_line(tmp_path):
    pytest.importorskip("aiohttp")
    with RangeServer(tmp_path) as server:
        message = refusal(lambda: ShardReader(server.url))
        assert server.url in message and "manifest.json" in message


def test_shards_are_copied_to_the_node_while_they_are_read(packed, tmp_path):
    pytest.importorskip("aiohttp")
    folder, values = packed
    with RangeServer(folder) as server:
        reader = ShardReader(server.url, 2, stage=tmp_path)
        reader.prefetch([2, 0, 1])
        _assert_all(reader, values)
        end = time.monotonic() + 20
        while reader.counters["staged"] < 3 and time.monotonic() < end:
            time.sleep(0.02)
        before = dict(server.requests)
        _assert_all(reader, values)
        assert dict(server.requests) == before  # all from the node's disk
        assert reader.counters["staged"] == 3
        reader.close()
        copies = sorted(path.name for path in tmp_path.rglob("*.tar"))
        assert copies == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]


def test_a_damaged_copy_on_the_node_is_dropped_and_the_tile_read_from_the_source(packed, tmp_path):
    folder, values = packed
    reader = ShardReader(folder, stage=tmp_path)
    reader.prefetch([0, 1, 2])
    end = time.monotonic() + 20
    while reader.counters["staged"] < 3 and time.monotonic() < end:
        time.sleep(0.02)
    (copy,) = tmp_path.rglob("shard-000001.tar")
    data = bytearray(copy.read_bytes())
    for begin in range(0, len(data), 64):
        data[begin] ^= 1
    copy.write_bytes(data)
    _assert_all(reader, values)
    reader.close()


@pytest.mark.parametrize(
    ("view", "says"),
    [
        ({"split": "trian"}, "did you mean 'train'?"),
        ({"max_clouds": 0.1}, "unknown key 'max_clouds'; did you mean 'max_cloud'?"),
        ({"max_cloud": "little"}, "key 'max_cloud': expected a number from 0 to 1, or null, got 'little'"),
        ({"max_cloud": 5}, "key 'max_cloud': expected a number from 0 to 1, or null, got 5"),
        ({"bbox": [1, 2]}, "key 'bbox': expected a list of west, south, east and north in degrees"),
        ({"begin": "2022-13-01"}, "key 'begin': expected a day such as 2022-06-30, got '2022-13-01'"),
        ({"keep": Path("nowhere.txt")}, "key 'view.keep': nowhere.txt: can't be read"),
        ({"threads": "4"}, "threads is '4'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_conditions_that_can_not_be_met_are_one_line(packed, view, says):
    with pytest.raises(ConfigError) as raised:
        open_dataset(packed[0], **view)
    assert says in str(raised.value) and "\n" not in str(raised.value)
