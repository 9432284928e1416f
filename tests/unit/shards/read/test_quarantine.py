"""Bad tiles are set aside, replaced alike everywhere, remembered and limited; views choose tiles; locks hold."""

import multiprocessing
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from support.range_server import RangeServer
from support.tables import make_table

from shards.errors import ConfigError, MissingShardError, ShardError, UnreachableError
from shards.files import lock, patience
from shards.files.atomic import sweep
from shards.order.selection import ViewConfig
from shards.order.view import view_hash, view_rows
from shards.read.quarantine import NoneLeft, Quarantine, TooManyBadSamples
from shards.read.reader import ShardReader, open_dataset


@pytest.fixture
def damaged(packed, tmp_path):
    """A copy whose rows 2 and 5 are damaged."""
    folder = Path(shutil.copytree(packed[0], tmp_path / "shards"))
    reader = ShardReader(folder)
    for row in (2, 5):
        with open(folder / reader.manifest.shards[reader.table["shard"][row]].name, "r+b") as file:
            file.seek(int(reader.table["offset"][row]) + 50)
            file.write(b"\xff\x00\xff")
    return folder


def _read(folder, quarantine, threads=1):
    reader = ShardReader(folder, threads)
    out = np.empty((10, *reader.tile_shape), np.int16)
    reader.read(range(10), out, quarantine)
    return reader, out


@pytest.mark.parametrize("threads", [1, 4])
def test_a_bad_tile_is_replaced_by_the_same_training_tile_everywhere(damaged, packed, tmp_path, threads):
    rows = np.array([0, 1, 2, 3, 4, 5, 6])  # 7 to 9 are held out
    stand_ins = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        quarantine = Quarantine(rows, "d", 5, tmp_path / str(rank), rank)
        reader, out = _read(damaged, quarantine, threads)
        keys = [next(key for key, tile in packed[1].items() if np.array_equal(tile, found)) for found in out]
        assert [keys[row] for row in (0, 1, 3, 4, 6, 7, 8, 9)] == [reader.key(row) for row in (0, 1, 3, 4, 6, 7, 8, 9)]
        assert {keys[2], keys[5]} <= {reader.key(row) for row in rows} - {reader.key(2), reader.key(5)}
        assert (quarantine.rows, quarantine.found, quarantine.loaded) == ([2, 5], 2, 0)
        stand_ins.append((keys[2], keys[5]))
    assert stand_ins[0] == stand_ins[1]


def test_what_was_bad_once_stays_out_even_where_it_heals(damaged, packed, tmp_path):
    _, out = _read(damaged, Quarantine(np.arange(10), "d", 5, tmp_path, 0))
    again = Quarantine(np.arange(10), "d", 5, tmp_path, 3)
    assert (again.loaded, again.found) == (2, 0)
    _, healed = _read(packed[0], again)
    np.testing.assert_array_equal(out, healed)
    assert Quarantine(np.arange(10), "another dataset", 5, tmp_path, 0).loaded == 0


def test_one_more_than_the_budget_ends_the_run(damaged, tmp_path):
    with pytest.raises(
        TooManyBadSamples, match=r"fails its checksum.*2 bad tiles so far, but 'data.max_bad_tiles' allows 1"
    ):
        _read(damaged, Quarantine(np.arange(10), "d", 1, tmp_path, 0))


def test_after_too_many_the_tiles_are_read_again_and_mended_shards_go_on(damaged, packed, tmp_path):
    with pytest.raises(TooManyBadSamples):
        _read(damaged, Quarantine(np.arange(10), "d", 1, tmp_path, 0))
    with pytest.raises(TooManyBadSamples):  # nothing was mended
        _read(damaged, Quarantine(np.arange(10), "d", 1, tmp_path, 0))
    quarantine = Quarantine(np.arange(10), "d", 1, tmp_path, 0)
    _, out = _read(packed[0], quarantine)
    assert (quarantine.loaded, quarantine.rows) == (0, [])
    np.testing.assert_array_equal(out[2], _read(packed[0], None)[1][2])


def test_half_a_line_of_a_killed_run_is_passed_over(tmp_path):
    (tmp_path / "quarantine-00000.jsonl").write_text('{"dataset": "d", "row": 4, "key": "k", "reason": "r"}\n{"datas')
    assert Quarantine(np.arange(10), "d", 5, tmp_path, 0).rows == [4]


def test_without_a_quarantine_a_bad_tile_is_an_error(damaged):
    with pytest.raises(ShardError, match="fails its checksum"):
        _read(damaged, None)


def test_a_held_out_tile_is_replaced_by_another_that_is_held_out(damaged, packed, tmp_path):
    quarantine = Quarantine(np.array([0, 1, 2, 3, 4]), "d", 5, tmp_path, 0, held_out=np.array([5, 6, 7, 8, 9]))
    reader = ShardReader(damaged)
    out = np.empty((10, *reader.tile_shape), np.int16)
    rows = reader.read(range(10), out, quarantine)
    assert rows[2] in (0, 1, 3, 4) and rows[5] in (6, 7, 8, 9)
    assert [row for number, row in enumerate(rows) if number not in (2, 5)] == [0, 1, 3, 4, 6, 7, 8, 9]
    for found, row in zip(out, rows, strict=True):
        np.testing.assert_array_equal(found, packed[1][reader.key(row)])


def test_where_none_is_left_the_error_says_so(damaged, tmp_path):
    quarantine = Quarantine(np.array([0, 1, 2]), "d", 5, tmp_path, 0, held_out=np.array([5]))
    reader = ShardReader(damaged)
    with pytest.raises(NoneLeft, match=r"fails its checksum.*all 1 tiles that could replace.*verify"):
        reader.read([5], np.empty((1, *reader.tile_shape), np.int16), quarantine)


# ---- networks ----


def test_a_shard_that_is_gone_puts_no_tile_aside(packed, tmp_path):
    folder = Path(shutil.copytree(packed[0], tmp_path / "shards"))
    reader = ShardReader(folder)
    for tar in folder.glob("*.tar"):
        tar.unlink()
    quarantine = Quarantine(np.arange(10), reader.manifest.content_hash, 10, tmp_path, 0)
    with pytest.raises(MissingShardError, match=r"shard-\d+\.tar: missing, though the manifest lists it: put it back"):
        reader.read(range(10), np.empty((10, *reader.tile_shape), np.int16), quarantine)
    assert not quarantine.rows and not list(tmp_path.glob("quarantine-*"))


def test_a_network_that_is_away_for_a_while_puts_no_tile_aside(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(patience, "WARN_S", 0.0)
    with RangeServer(packed[0]) as server:
        reader = ShardReader(server.url, threads=2)
        reader._storage._patience.sleep = lambda pause: None
        server.fail = 12
        quarantine = Quarantine(np.arange(10), "d", 0, tmp_path, 0)
        out = np.empty((10, *reader.tile_shape), np.int16)
        assert reader.read(range(10), out, quarantine) == list(range(10))
        for row in range(10):
            np.testing.assert_array_equal(out[row], packed[1][reader.key(row)])
        lines = capsys.readouterr().err.splitlines()
        assert "no answer for" in lines[0] and any("answers again" in line for line in lines)

        server.fail = 10**6  # and one that stays away ends the run, in one line, with nothing put aside
        with pytest.raises(UnreachableError, match=r"attempts in \d+ s, the last one: HTTP 503"):
            reader.read(range(10), out, quarantine)
        assert quarantine.rows == [] and not list(tmp_path.glob("quarantine-*"))
        reader.close()


def test_bytes_that_change_on_their_way_are_read_again(packed, tmp_path, monkeypatch):
    reader, quarantine = ShardReader(packed[0]), Quarantine(np.arange(10), "d", 0, tmp_path, 0)
    read, wrong = reader._storage.read_into, iter(range(1))

    def garble(name, offset, buffer):
        read(name, offset, buffer)
        if next(wrong, None) is not None:
            buffer[0] ^= 1

    monkeypatch.setattr(reader._storage, "read_into", garble)
    out = np.empty((1, *reader.tile_shape), np.int16)
    assert reader.read([3], out, quarantine) == [3]
    np.testing.assert_array_equal(out[0], packed[1][reader.key(3)])


# ---- views ----

TABLE = make_table(
    [["a", "a", "b"], ["c", "d", "e"]],
    lon=[10, 10, 179, -179, 0, None],
    lat=[50, 50, 0, 0, 90, None],
    date=["2022-06-01", "2022-07-01", "2023-01-01", None, "2022-06-30", "2024-02-29"],
    cloud=[0.0, 0.5, 0.1, None, 0.02, 0.0],
    nodata=[0.0, 0.0, 0.0, 0.0, 0.3, 0.0],
    split=["train", "train", "val", "test", "", ""],
    scene=["S1", "S2", "S1", "S3", "", ""],
)


@pytest.mark.parametrize(
    ("view", "rows"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"bbox": (5, 45, 15, 55)}, [0, 1]),
        ({"bbox": (170, -10, -170, 10)}, [2, 3]),
        ({"begin": "2022-06-15"}, [1, 2, 4, 5]),
        ({"begin": "2022-06-01", "end": "2022-06-30"}, [0, 4]),
        ({"max_cloud": 0.1}, [0, 2, 4, 5]),
        ({"max_nodata": 0.0}, [0, 1, 2, 3, 5]),
        ({"split": "train"}, [0, 1]),
        ({"max_cloud": 0.1, "end": "2022-12-31"}, [0, 4]),
    ],
)
def test_a_view_keeps_the_tiles_that_meet_all_conditions(view, rows):
    assert view_rows(ViewConfig(**view), TABLE).tolist() == rows


def test_lists_keep_and_deny_scenes_locations_and_keys(tmp_path):
    (tmp_path / "list.txt").write_text("S1  # a scene\n\ne\nd_00000\n")
    assert view_rows(ViewConfig(keep=str(tmp_path / "list.txt")), TABLE).tolist() == [0, 2, 4, 5]
    assert view_rows(ViewConfig(deny=str(tmp_path / "list.txt")), TABLE).tolist() == [1, 3]
    (tmp_path / "list.txt").write_text("S9\n")
    with pytest.raises(ConfigError, match="none of the 1 names"):
        view_rows(ViewConfig(deny=str(tmp_path / "list.txt")), TABLE)
    with pytest.raises(ConfigError, match="can't be read"):
        view_rows(ViewConfig(deny=str(tmp_path / "none.txt")), TABLE)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_of_any_editor_is_read(tmp_path, encoding):
    (tmp_path / "list.txt").write_bytes("S1\r\ne\r\nd_00000\r\n".encode(encoding))
    assert view_rows(ViewConfig(keep=str(tmp_path / "list.txt")), TABLE).tolist() == [0, 2, 4, 5]
    (tmp_path / "list.txt").write_bytes("Grün\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"can't be read \(not UTF-8 text \(line 1\): save it as UTF-8\)"):
        view_rows(ViewConfig(deny=str(tmp_path / "list.txt")), TABLE)


def test_a_view_is_a_dataset_of_its_own_and_the_whole_is_not():
    assert view_hash("h", np.arange(6), 6) == "h"
    assert len({view_hash("h", np.arange(6), 6), view_hash("h", np.arange(5), 6), view_hash("h", np.arange(4), 6)}) == 3


def test_a_orient_an_opened_dataset(packed):
    whole, part = open_dataset(packed[0]), open_dataset(packed[0], bbox=(13, 52, 14, 53), max_nodata=0.5)
    assert len(part) == len(whole)
    assert len(open_dataset(packed[0], bbox=(0, 0, 1, 1))) == 0


# ---- locks ----


def _hold(path, started, seconds):
    with lock.held(Path(path)):
        started.set()
        time.sleep(seconds)


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path):
    path = tmp_path / "a.lock"
    first, second = lock.Lock(path), lock.Lock(path)
    assert first.acquire() and not second.acquire()
    assert lock.holder(path).split()[1] == str(os.getpid())
    first.release()
    assert second.acquire()
    second.release()
    assert not path.exists()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "a.lock"), started, 60))
    process.start()
    assert started.wait(30)
    taker = lock.Lock(tmp_path / "a.lock")
    assert not taker.acquire()
    process.kill()
    process.join()
    assert taker.acquire()
    taker.release()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_silent_node_is_taken_over(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text("another-node 17 4711\n")
    assert not lock.Lock(path).acquire()
    os.utime(path, (time.time() - 2 * lock.STALE_S,) * 2)
    taker = lock.Lock(path)
    assert taker.acquire()
    taker.release()


def test_temporary_files_of_dead_writers_are_swept_and_those_of_live_ones_kept(tmp_path):
    host, old = socket.gethostname(), time.time() - 3600
    names = {
        f"a.tar.{host}.{os.getpid()}.1.tmp": True,  # this very process
        f"a.tar.{host}.999999999.1.tmp": False,
        "a.tar.other-node.17.1.tmp": True,
        "a.tar.old-node.17.1.tmp": False,
        "a.tar.tmp": False,
        "b.tar.tmp": True,  # not of this pattern
    }
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    os.utime(tmp_path / "a.tar.old-node.17.1.tmp", (old, old))
    sweep(tmp_path, "a.*")
    assert {path.name for path in tmp_path.iterdir()} == {name for name, kept in names.items() if kept}


# ---- the tiles of the fixed loss ----


def test_where_all_held_out_tiles_are_damaged_the_fixed_loss_takes_training_tiles(damaged, tmp_path):
    from pretrain.data.inputs import Inputs, Source
    from shards.order.plan import SamplePlan

    reader, rows, held_out = ShardReader(damaged), np.array([0, 1, 2, 3]), np.array([5])
    plan = SamplePlan(reader.table, rows, "d", 0)
    sources = (Source("shards", 1, reader.manifest, plan, held_out, ""),)
    tiles, used = Inputs(reader, plan, sources, Quarantine(rows, "d", 5, tmp_path, 0, held_out)).always(3)
    assert tiles.shape[0] == 3 and set(used) <= {0, 1, 3}
    again = Inputs(reader, plan, sources, Quarantine(rows, "d", 5, tmp_path, 1, held_out)).always(3)
    assert again[1] == used and np.array_equal(again[0], tiles)
