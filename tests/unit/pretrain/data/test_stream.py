"""Batches read ahead by a thread: the planned order on any number of ranks, and errors that arrive."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiles import write_archive

from pretrain.data.stream import TileStream, micro_batches
from shards.errors import ShardError
from shards.order.plan import SamplePlan, rank_samples
from shards.order.selection import OrderConfig
from shards.pack.build import PackConfig, pack
from shards.read.reader import ShardReader

CPU = torch.device("cpu")
GLOBAL, STEPS = 8, 5  # 40 samples of 10 tiles: four epochs


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    values = write_archive(folder / "source", size=4)
    pack(folder / "source", folder / "shards", PackConfig(tiles_per_shard=3))
    return folder / "shards", values


@pytest.fixture
def reader(packed):
    reader = ShardReader(packed[0], threads=2)
    yield reader
    reader.close()


def _stream(reader: ShardReader, prefetch: int = 2) -> TileStream:
    return TileStream(reader, SamplePlan(reader.table, np.arange(len(reader)), "dataset", 3), CPU, prefetch)


def _numbers(world: int, rank: int, first: int = 0, micro: int = 2):
    return micro_batches(first * GLOBAL, STEPS - first, GLOBAL, micro, rank, world)


def _thread() -> threading.Thread:
    return next(thread for thread in threading.enumerate() if thread.name == "tile-stream")


def _no_thread() -> bool:
    return not any(thread.name == "tile-stream" for thread in threading.enumerate())


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_read_the_planned_order(packed, reader, world):
    """Step by step, the ranks' batches one after the other are the samples in order, with the right tiles."""
    share = GLOBAL // world // 2
    steps = [[] for _ in range(STEPS)]
    for rank in range(world):
        stream = _stream(reader)
        for number, batch in enumerate(stream.batches(_numbers(world, rank))):
            steps[number // share].append((batch.samples, batch.tiles.clone()))
        assert number + 1 == STEPS * share
    samples = np.concatenate([part for step in steps for part, _ in step])
    assert samples.tolist() == list(range(STEPS * GLOBAL))
    order = _stream(reader).plan.tiles(samples)
    for epoch in range(4):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    tiles = torch.cat([part for step in steps for _, part in step])
    for row, tile in zip(order, tiles, strict=True):
        np.testing.assert_array_equal(tile.numpy(), packed[1][reader.key(row)])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_same_tiles_come_for_any_world_any_threads_and_after_a_resume_with_another_world(packed, world, threads):
    """Twelve samples a step; from step 3 on as many ranks as before, and then another number of them."""
    reader = ShardReader(packed[0], threads)

    def steps(first, last, ranks):
        streams = []
        for rank in range(ranks):
            numbers = (rank_samples(step, 12, rank, ranks) for step in range(first, last))
            streams.append([(batch.samples, batch.tiles.clone()) for batch in _stream(reader).batches(numbers)])
        return [part for step in zip(*streams, strict=True) for part in step]

    order = _stream(reader).plan.tiles(np.arange(72))
    resumed = steps(0, 3, world) + steps(3, 6, 1 + world % 4)
    samples = np.concatenate([part for part, _ in resumed])
    assert samples.tolist() == list(range(72))
    for row, tile in zip(order, torch.cat([part for _, part in resumed]), strict=True):
        np.testing.assert_array_equal(tile.numpy(), packed[1][reader.key(row)])
    reader.close()


def test_two_dates_of_a_location_are_a_pair_and_a_lone_one_is_read_once(packed, reader):
    """Batches of eight of six locations: one that comes again in the next epoch brings no tile twice, either."""
    plan = SamplePlan(reader.table, np.arange(len(reader)), "dataset", 3, OrderConfig(sampling="location"))
    dates: dict[str, set[str]] = {}
    for location, timestamp in (key.split("_") for key in packed[1]):
        dates.setdefault(location, set()).add(timestamp)
    places: dict[str, set[int]] = {location: set() for location in dates}
    seen: dict[str, set[str]] = {location: set() for location in dates}
    for batch in TileStream(reader, plan, CPU, 2, timestamps=2).batches(_numbers(1, 0, micro=8)):
        pairs = plan.pairs(batch.samples)
        assert batch.rows.shape == (8, 2)
        assert len(batch.tiles) == len(np.unique(pairs)) < 16
        for pair, rows, place in zip(pairs, batch.rows.tolist(), batch.location_ids.tolist(), strict=True):
            keys = [reader.key(row) for row in pair]
            for key, row in zip(keys, rows, strict=True):
                np.testing.assert_array_equal(batch.tiles[row].numpy(), packed[1][key])
            (first, one), (second, other) = (key.split("_") for key in keys)
            assert first == second
            assert (one == other) == (rows[0] == rows[1]) == (len(dates[first]) == 1)
            places[first].add(place)
            seen[first] |= {one, other}
    assert seen == dates
    assert all(len(numbers) == 1 for numbers in places.values())
    assert len(set.union(*places.values())) == len(dates)


def test_without_pairs_each_sample_is_a_tile(reader):
    batch = next(iter(_stream(reader).batches(_numbers(1, 0, micro=4))))
    assert batch.rows.tolist() == [[0], [1], [2], [3]]
    assert len(batch.tiles) == 4


@pytest.mark.parametrize(("micro", "world"), [(1, 1), (2, 1), (8, 1), (2, 2), (4, 2), (1, 4)])
def test_micro_batches_cut_the_same_samples(micro, world):
    for step in range(STEPS):
        parts = [list(micro_batches(step * GLOBAL, 1, GLOBAL, micro, rank, world)) for rank in range(world)]
        assert {len(part) for rank in parts for part in rank} == {micro}
        together = np.concatenate([part for rank in parts for part in rank])
        assert together.tolist() == list(range(step * GLOBAL, (step + 1) * GLOBAL))


@pytest.mark.parametrize("world", [1, 2])
def test_a_start_in_the_middle_continues_exactly(reader, world):
    whole = [(batch.samples, batch.tiles.clone()) for batch in _stream(reader).batches(_numbers(world, world - 1))]
    late = [
        (batch.samples, batch.tiles.clone()) for batch in _stream(reader).batches(_numbers(world, world - 1, first=3))
    ]
    rest = whole[3 * (GLOBAL // world // 2) :]
    assert len(late) == len(rest) > 0
    for (samples, tiles), (expected, same) in zip(late, rest, strict=True):
        assert np.array_equal(samples, expected)
        assert torch.equal(tiles, same)


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(packed, reader, prefetch):
    batches = _stream(reader, prefetch).batches(_numbers(1, 0))
    plan = _stream(reader).plan
    for number, batch in enumerate(batches):
        if number < 4:
            time.sleep(0.05)  # the thread has all the time to spoil it
        for row, tile in zip(plan.tiles(batch.samples), batch.tiles, strict=True):
            np.testing.assert_array_equal(tile.numpy(), packed[1][reader.key(row)])


def test_no_more_buffers_are_made_than_read_ahead(reader):
    places = {batch.tiles.data_ptr() for batch in _stream(reader, prefetch=2).batches(_numbers(1, 0))}
    assert len(places) <= 3


def test_the_thread_reads_ahead_and_no_further(reader):
    asked = []

    def numbers():
        for batch in _numbers(1, 0):
            asked.append(batch)
            yield batch

    batches = _stream(reader, prefetch=2).batches(numbers())
    next(batches)
    time.sleep(0.2)
    assert len(asked) == 4  # one in use, two read, one waiting for a buffer
    batches.close()


def test_the_thread_ends_with_the_last_batch(reader):
    assert len(list(_stream(reader).batches(_numbers(1, 0)))) == STEPS * GLOBAL // 2
    assert _no_thread()


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_early_ends_the_thread(reader, taken):
    batches = _stream(reader).batches(_numbers(1, 0))
    for _ in range(taken):
        next(batches)
    thread = _thread()
    batches.close()
    assert not thread.is_alive()
    assert _no_thread()


def test_an_error_in_the_loop_ends_the_thread(reader):
    batches = _stream(reader).batches(_numbers(1, 0))
    with pytest.raises(KeyError):
        for _ in batches:
            raise KeyError("in the loop")
    batches.close()
    assert _no_thread()


def test_a_damaged_tile_is_an_error_where_the_loop_reaches_it(packed, tmp_path):
    folder = Path(shutil.copytree(packed[0], tmp_path / "shards"))
    reader = ShardReader(folder)
    stream = _stream(reader)
    row = int(stream.plan.tiles(np.arange(10))[5])  # in the third micro batch
    shard = folder / reader.manifest.shards[reader.table["shard"][row]].name
    data = bytearray(shard.read_bytes())
    data[reader.table["offset"][row] + reader.table["length"][row] // 2] ^= 0x10
    shard.write_bytes(data)
    batches = stream.batches(_numbers(1, 0))
    assert [next(batches).samples.tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ShardError, match=f"{shard.name}: tile '{reader.key(row)}' at byte .* fails its checksum"):
        next(batches)
    assert _no_thread()
    reader.close()


def test_any_error_of_the_thread_reaches_the_loop(reader):
    def numbers():
        yield np.arange(2)
        raise MemoryError("no room")

    batches = _stream(reader).batches(numbers())
    next(batches)
    with pytest.raises(MemoryError, match="no room"):
        next(batches)


def test_draws_are_made_by_the_thread_that_reads(reader):
    threads = set()

    def draws(samples: np.ndarray, sources: np.ndarray):
        threads.add(threading.current_thread().name)
        return {"numbers": (samples * 2, samples[:, None] + np.zeros(3))}

    plan = SamplePlan(reader.table, np.arange(len(reader)), "dataset", 3)
    for batch in TileStream(reader, plan, CPU, 2, draws=draws).batches(_numbers(1, 0)):
        doubled, rows = batch.draws["numbers"]
        assert doubled.tolist() == (batch.samples * 2).tolist()
        assert rows.shape == (2, 3)
    assert threads == {"tile-stream"}


def test_the_device_decodes_the_same_batches(reader):
    plan = SamplePlan(reader.table, np.arange(len(reader)), "dataset", 3, OrderConfig(sampling="location"))
    streams = [TileStream(reader, plan, CPU, 2, timestamps=2, decode=decode) for decode in ("host", "device")]
    for host, device in zip(*(stream.batches(_numbers(1, 0, first=4)) for stream in streams), strict=True):
        assert torch.equal(host.tiles, device.tiles)
        assert torch.equal(host.rows, device.rows)
        assert torch.equal(host.location_ids, device.location_ids)
    assert streams[0].decoded_bytes == streams[1].decoded_bytes


def test_waiting_is_counted(reader):
    def slow():
        for batch in _numbers(1, 0):
            time.sleep(0.02)
            yield batch

    stream = _stream(reader)
    list(stream.batches(slow()))
    assert 0.2 < stream.wait_seconds < 20
    fast = _stream(reader, prefetch=30)
    batches = fast.batches(_numbers(1, 0))
    next(batches)
    time.sleep(0.3)
    before = fast.wait_seconds
    list(batches)
    assert fast.wait_seconds - before < 0.1
