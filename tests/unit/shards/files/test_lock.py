"""Locks that outlive their holders: suspended, cut off, forked, and on file systems that lack one call or another."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.files import lock
from shards.files.atomic import sweep
from shards.files.lock import Lock
from shards.files.processes import ProcessId

HOLD = """
import sys
from pathlib import Path
from shards.files import lock
lock.HEARTBEAT_S = 0.05
held = lock.Lock(Path(sys.argv[1]))
print(held.acquire(), flush=True)
sys.stdin.readline()
print(held.is_held(), held.is_lost, flush=True)
held.release()
print("released", flush=True)
"""


def _wait_until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()


def test_a_holder_that_was_suspended_leaves_its_successors_lock_alone(holder, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.lock"
    monkeypatch.setattr(lock, "STALE_S", 0.5)
    successor = Lock(path)
    assert not successor.acquire()
    holder.send_signal(signal.SIGSTOP)
    _wait_until(successor.acquire)
    mine, touched = path.read_text(), path.stat().st_mtime_ns
    holder.send_signal(signal.SIGCONT)
    assert holder.communicate("go on\n")[0] == "False True\nreleased\n"
    assert (path.read_text(), path.stat().st_mtime_ns) == (mine, touched)
    assert not Lock(path).acquire()
    successor.release()
    assert list(tmp_path.iterdir()) == []


def test_where_the_holder_must_not_be_doubled_a_suspended_one_keeps_its_lock(holder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "STALE_S", 0.1)
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    assert not Lock(tmp_path / "a.lock", from_living=False).acquire()
    holder.kill()
    holder.wait()
    assert Lock(tmp_path / "a.lock", from_living=False).acquire()


def test_a_holder_elsewhere_keeps_its_lock_for_as_long_as_it_is_heard_of(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_text("another-node 17 4711 boot-1 token\n")
    assert not Lock(path, from_living=False).acquire()
    os.utime(path, (time.time() - 2 * lock.STALE_S,) * 2)
    assert Lock(path, from_living=False).acquire()


def test_a_container_with_this_host_s_name_is_elsewhere() -> None:
    own = ProcessId.own()
    assert own.state() == "alive"
    assert ProcessId(own.host, own.pid, own.start, "other-namespace").state() == "elsewhere"
    assert ProcessId(own.host, own.pid, "1", own.machine).state() == "gone"  # the number was used again
    assert ProcessId.parse(f"{own} token\n") == own


def test_a_lock_is_given_back_when_its_object_is_gone_but_not_by_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    held = Lock(path)
    assert held.acquire()
    child = os.fork()
    if child == 0:
        held.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert held.is_held()
    del held
    assert not path.exists()


def test_heartbeats_and_takers_do_without_the_calls_that_some_file_systems_lack(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.lock"
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    refusals = {"utime": errno.EPERM, "link": errno.EOPNOTSUPP}
    for call, number in refusals.items():

        def refuse(*_, number=number, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, refuse)
    held = Lock(path)
    assert held.acquire()
    before = path.stat().st_mtime_ns
    _wait_until(lambda: path.stat().st_mtime_ns > before)
    assert held.is_held() and not lock._remove(path, lambda _: False)  # a taker that was too late puts it back
    assert held.is_held() and [one.name for one in tmp_path.iterdir()] == ["a.lock"]
    held.release()


def test_a_lock_that_cannot_be_written_is_nobodys(tmp_path: Path, monkeypatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.lock"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        with pytest.raises(OSError, match="No space left"):
            Lock(path).acquire()
    assert Lock(path).acquire()


def test_clocks_of_nodes_may_differ(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.lock"
    path.write_text("another-node 17 4711 boot-1 token\n")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 600)  # this node's clock is ahead of the file server's
    assert not Lock(path).acquire()
    assert lock.silence(path) < 10
    temporary = tmp_path / "a.json.another-node.17.4711.tmp"
    temporary.touch()  # still being written
    monkeypatch.setattr(time, "time", lambda: now + 6000)
    sweep(tmp_path, "a.json.*")
    assert temporary.exists()
