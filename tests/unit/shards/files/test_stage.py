"""Copies on the node: fetched once, whole or absent whatever happens, within the quota, and never in the way."""

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.processes import REPOSITORY
from support.range_server import RangeServer

from shards.errors import ShardError
from shards.files import stage
from shards.files import storage as storage_module
from shards.files.stage import LOCK, StagedFile, StagedStorage
from shards.files.storage import LocalStorage, RemoteStorage

SIZE = 300_000
NAMES = [f"shard-{number:06d}.tar" for number in range(6)]

PROCESS = """
import json, resource, sys
from pathlib import Path
from shards.files import stage
from shards.files.storage import open_storage

url, folder, files, names, quota, limit = json.loads(sys.argv[1])
stage.CHUNK, stage.POLL_S = 1 << 16, 0.05
files = [stage.StagedFile(*file) for file in files]
storage = stage.StagedStorage(open_storage(url), Path(folder), files, quota)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
storage.prefetch(names)
print("started", flush=True)
for line in sys.stdin:
    name, offset, length = json.loads(line)
    data = bytearray(length)
    storage.read_into(name, offset, memoryview(data))
    print(data.hex(), flush=True)
storage.close()
print(json.dumps([storage.staged, storage.read_through, storage.evicted, storage.downloaded_bytes]))
"""


class Process:
    """Another process of the node, with its own StagedStorage: reads when asked, counts when ended."""

    def __init__(self, url, folder, files, names=NAMES, quota=None, limit=None):
        files = [(file.name, file.size, file.sha256) for file in files]
        asked = json.dumps([url, str(folder), files, list(names), quota, limit])
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", PROCESS, asked], cwd=REPOSITORY, text=True, **pipes)
        assert self.process.stdout.readline() == "started\n"

    def read(self, name, offset, length):
        self.process.stdin.write(json.dumps([name, offset, length]) + "\n")
        self.process.stdin.flush()
        return bytes.fromhex(self.process.stdout.readline())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def end(self):
        """(staged, read_through, evicted, downloaded_bytes), and what it wrote to stderr."""
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, err
        return tuple(json.loads(out)), err


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(stage, "CHUNK", 1 << 16)
    monkeypatch.setattr(stage, "POLL_S", 0.05)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    rng = np.random.default_rng(0)
    for name in NAMES:
        (folder / name).write_bytes(rng.bytes(SIZE))
    return folder


@pytest.fixture
def files(origin):
    return [StagedFile(name, SIZE, hashlib.sha256((origin / name).read_bytes()).hexdigest()) for name in NAMES]


@pytest.fixture
def server(origin):
    with RangeServer(origin) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "node" / "dataset"


@pytest.fixture
def make(server, folder, files, request):
    """Make storages that are closed when the test ends."""

    def _make(source=None, files=files, folder=folder, quota=None):
        storage = StagedStorage(source or RemoteStorage(server.url), folder, files, quota)
        request.addfinalizer(storage.close)
        return storage

    return _make


def _until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def _whole(folder):
    """Names without a temporary or lock suffix, in order."""
    return sorted(name for name in os.listdir(folder) if not name.endswith((".tmp", LOCK)))


def _staged(folder, names):
    """A condition: the files are there and nothing is under way."""
    return lambda: sorted(os.listdir(folder)) == sorted(names)


def _check_reads(storage, origin, count=60, names=NAMES):
    rng = np.random.default_rng(2)
    for _ in range(count):
        name, offset = names[rng.integers(len(names))], int(rng.integers(0, SIZE))
        data = bytearray(int(rng.integers(0, SIZE - offset + 1)))
        storage.read_into(name, offset, memoryview(data))
        assert data == (origin / name).read_bytes()[offset : offset + len(data)]


@contextlib.contextmanager
def _watched(folder, quota):
    """Look all the time whether the folder keeps to its quota."""
    most, ended = [0], threading.Event()

    def _watch():
        while not ended.is_set():
            total = 0
            for path in folder.glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size * (LOCK not in path.name)
            most.append(total)

    watcher = threading.Thread(target=_watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    assert max(most) <= quota


def test_reads_are_right_before_while_and_after_files_are_staged(make, server, folder, origin):
    storage = make()
    _check_reads(storage, origin, 10)
    assert storage.read_through == 10 and storage.staged == 0
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(_check_reads, storage, origin) for _ in range(4)]
        storage.prefetch(NAMES)
        assert [read.result() for read in reads]
    _until(_staged(folder, NAMES))
    assert (storage.staged, storage.downloaded_bytes, storage.evicted) == (6, 6 * SIZE, 0)
    before, sent = storage.read_through, server.sent.total()
    _check_reads(storage, origin)
    assert storage.read(NAMES[2]) == (origin / NAMES[2]).read_bytes() and storage.size(NAMES[2]) == SIZE
    assert (storage.read_through, server.sent.total()) == (before, sent)
    assert storage.url == server.url


def test_files_come_in_the_order_asked_for(make, server, folder):
    storage = make()
    storage.prefetch([NAMES[4], NAMES[1]])
    storage.prefetch([NAMES[0]])
    _until(_staged(folder, [NAMES[4], NAMES[1], NAMES[0]]))
    assert list(server.sent) == [NAMES[4], NAMES[1], NAMES[0]]


def test_files_of_other_names_are_read_through(make, files, origin):
    storage = make(files=files[:2])
    storage.prefetch(NAMES)
    assert storage.read(NAMES[5]) == (origin / NAMES[5]).read_bytes()
    with pytest.raises(ShardError, match="nothing: missing"):
        storage.size("nothing")


def test_two_processes_fetch_each_file_once(server, folder, files, origin):
    processes = [Process(server.url, folder, files) for _ in range(2)]
    _until(_staged(folder, NAMES))
    for process in processes:
        assert process.read(NAMES[3], 1000, 5000) == (origin / NAMES[3]).read_bytes()[1000:6000]
    counts = [process.end()[0] for process in processes]
    assert {name: server.sent[name] for name in NAMES} == dict.fromkeys(NAMES, SIZE)
    assert [sum(count) for count in zip(*counts, strict=True)] == [6, 0, 0, 6 * SIZE]


def test_a_killed_process_is_taken_over_from(server, folder, files, origin):
    server.hold_after = SIZE + 2 * stage.CHUNK
    killed = Process(server.url, folder, files)
    assert server.held.wait(20)
    other = Process(server.url, folder, files)
    killed.kill()
    assert _whole(folder) == NAMES[:1]
    assert [name for name in os.listdir(folder) if name.endswith(LOCK)]
    server.go.set()
    _until(_staged(folder, NAMES))
    assert other.read(NAMES[1], 0, SIZE) == (origin / NAMES[1]).read_bytes()
    assert other.end()[0] == (5, 0, 0, 5 * SIZE)


def test_a_process_that_was_wrongly_taken_for_dead_goes_on(make, server, folder, origin):
    server.hold_after = stage.CHUNK
    storage = make()
    storage.prefetch(NAMES)
    assert server.held.wait(20)
    for left in folder.iterdir():
        left.unlink()
    server.go.set()
    _until(_staged(folder, NAMES))
    _check_reads(storage, origin, 20)


def test_what_a_killed_process_left_is_cleaned_at_the_next_start(make, server, folder, files, origin):
    server.hold_after = SIZE + 2 * stage.CHUNK
    killed = Process(server.url, folder, files)
    assert server.held.wait(20)
    storage = make()
    assert len(os.listdir(folder)) > 2  # its holder lives
    killed.kill()
    make()
    assert os.listdir(folder) == NAMES[:1]
    server.go.set()
    _check_reads(storage, origin, 10)


def test_a_damaged_source_is_named_and_read_through(make, server, folder, files, origin, capfd):
    files[1] = StagedFile(NAMES[1], SIZE, files[0].sha256)
    storage = make(files=files)
    storage.prefetch(NAMES)
    _until(_staged(folder, [NAMES[0], *NAMES[2:]]))
    assert storage.staged == 5
    assert capfd.readouterr().err == (
        f"warning: not staged: {server.url}/{NAMES[1]}: "
        "twice other bytes than were packed (SHA-256); copy or pack it again\n"
    )
    (folder / NAMES[5]).unlink()
    storage.prefetch(NAMES)  # as the next epoch does
    _until(lambda: storage.staged == 6)
    assert server.sent[NAMES[1]] == 2 * SIZE
    _check_reads(storage, origin)
    assert storage.read_through and not capfd.readouterr().err


def test_bytes_that_came_wrong_once_are_fetched_again(make, folder, files, origin):
    class _WrongOnce(LocalStorage):
        wrong = 1

        def read_into(self, name, offset, buffer):
            super().read_into(name, offset, buffer)
            if offset and self.wrong:
                self.wrong, buffer[5] = 0, buffer[5] ^ 1

    storage = make(_WrongOnce(origin))
    storage.prefetch(NAMES[:1])
    _until(_staged(folder, NAMES[:1]))
    assert (folder / NAMES[0]).read_bytes() == (origin / NAMES[0]).read_bytes()
    assert (storage.staged, storage.downloaded_bytes) == (1, 2 * SIZE)


def test_a_source_that_fails_is_a_warning(make, server, folder, files, capfd):
    storage = make(files=[StagedFile("gone", 10, ""), *files])
    storage.prefetch(["gone", *NAMES])
    _until(_staged(folder, NAMES))
    assert capfd.readouterr().err == (
        f"warning: not staged: {server.url}/gone: missing; check the URL, or copy or pack it again\n"
    )


def test_a_source_that_was_away_is_copied_when_it_answers_again(make, server, folder, monkeypatch, capfd):
    monkeypatch.setattr(storage_module, "PATIENCE_S", 0.05)
    server.fail = 10**6
    storage = make()
    storage.prefetch(NAMES)
    _until(lambda: server.requests.total() > 20)
    assert not _whole(folder)
    server.fail = 0
    _until(_staged(folder, NAMES))
    assert "not staged" not in capfd.readouterr().err


def test_the_least_recently_read_make_room(make, folder, origin):
    storage = make(quota=3 * SIZE)
    with _watched(folder, 3 * SIZE):
        storage.prefetch(NAMES[:3])
        _until(_staged(folder, NAMES[:3]))
        for name in NAMES[1], NAMES[0]:
            _check_reads(storage, origin, 1, [name])
        storage.prefetch(NAMES[3:5])
        _until(_staged(folder, [NAMES[0], *NAMES[3:5]]))
        _check_reads(storage, origin)
    assert (storage.staged, storage.evicted) == (5, 2)


def test_a_dataset_above_the_quota_keeps_what_fits(make, folder, origin):
    storage = make(quota=4 * SIZE + 5)
    with _watched(folder, 4 * SIZE + 5):
        storage.prefetch(NAMES)
        _until(_staged(folder, [*NAMES[:4]]))
        storage.prefetch(NAMES)  # as the next epoch does
        _check_reads(storage, origin)
    assert (storage.staged, storage.evicted) == (4, 0)
    assert 0 < storage.read_through < 60


def test_processes_share_a_quota(server, folder, files, origin):
    quota = 3 * SIZE
    folder.mkdir(parents=True)
    with _watched(folder, quota):
        one = Process(server.url, folder, files, NAMES, quota)
        two = Process(server.url, folder, files, NAMES[::-1], quota)
        _until(lambda: len(_whole(folder)) == 3)
        three = Process(server.url, folder, files, NAMES[:1], quota)
        for process in one, two, three:
            for name in NAMES:
                assert process.read(name, 100, 5000) == (origin / name).read_bytes()[100:5100]
        ended = [process.end() for process in (one, two, three)]
    assert [err for _, err in ended] == ["", "", ""]


def test_an_evicted_file_is_read_to_its_end_and_then_closed(make, folder, origin, monkeypatch):
    reader, other = make(), make(quota=SIZE)
    reader.prefetch(NAMES[:1])
    _until(_staged(folder, NAMES[:1]))
    _check_reads(reader, origin, 5, NAMES[:1])
    other.prefetch(NAMES[1:2])
    _until(_staged(folder, NAMES[1:2]))
    assert other.evicted == 1
    _check_reads(reader, origin, 5, NAMES[:1])
    assert reader.read_through == 0 and f"{folder / NAMES[0]} (deleted)" in _open_files()
    monkeypatch.setattr(reader, "_next_look", 0.0)
    _check_reads(reader, origin, 5, NAMES[:1])
    assert reader.read_through == 5
    assert f"{folder / NAMES[0]} (deleted)" not in _open_files()


def _open_files():
    links = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.add(os.readlink(f"/proc/self/fd/{number}"))
    return links


def test_a_discarded_copy_is_fetched_again(make, folder, origin, server):
    storage, other = make(), make()
    storage.prefetch(NAMES[:1])
    _until(_staged(folder, NAMES[:1]))
    with open(folder / NAMES[0], "r+b") as file:
        file.write(b"wrong")
    for reader in storage, other:
        data = bytearray(5)
        reader.read_into(NAMES[0], 0, memoryview(data))
        assert data == b"wrong"
    storage.discard(NAMES[0])
    _check_reads(storage, origin, 5, NAMES[:1])
    _until(_staged(folder, NAMES[:1]))
    other.discard(NAMES[0])  # finds it replaced, and keeps it
    storage.discard("unknown")
    _check_reads(other, origin, 5, NAMES[:1])
    assert _staged(folder, NAMES[:1])()
    assert (storage.staged, other.staged, other.read_through) == (2, 0, 0)


@pytest.mark.parametrize("opened", [False, True])
def test_a_copy_that_was_cut_short_is_fetched_again(make, folder, origin, opened):
    storage = make()
    storage.prefetch(NAMES[:1])
    _until(_staged(folder, NAMES[:1]))
    if opened:
        _check_reads(storage, origin, 5, NAMES[:1])
    os.truncate(folder / NAMES[0], 1000)
    storage = storage if opened else make()
    data = bytearray(10)
    storage.read_into(NAMES[0], 2000, memoryview(data))
    assert data == (origin / NAMES[0]).read_bytes()[2000:2010]
    _until(lambda: _staged(folder, NAMES[:1])() and (folder / NAMES[0]).stat().st_size == SIZE)
    _check_reads(storage, origin, 5, NAMES[:1])


@pytest.mark.parametrize("reserving", [True, False])
def test_a_full_disk_is_a_warning(make, server, folder, origin, capfd, monkeypatch, reserving):
    def _full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if reserving:
        monkeypatch.setattr(os, "posix_fallocate", _full)
    else:  # as on a file system that promises space it doesn't have
        monkeypatch.setattr(os, "fsync", _full)
    storage = make()
    storage.prefetch(NAMES)
    _until(storage._stop.is_set)
    storage.prefetch(NAMES)
    _check_reads(storage, origin, 20)
    _until(_staged(folder, []))
    assert (storage.staged, storage.read_through) == (0, 20)
    assert capfd.readouterr().err == (
        f"warning: {folder}: No space left on device: nothing more is staged, the rest is read from {server.url}\n"
    )


def test_a_limit_of_file_sizes_is_a_warning(server, folder, files, origin):
    process = Process(server.url, folder, files, limit=SIZE // 2)
    assert process.read(NAMES[0], 7, 100) == (origin / NAMES[0]).read_bytes()[7:107]
    counts, err = process.end()
    assert counts[0] == 0 and err.count("\n") == 1
    assert err.startswith(f"warning: {folder}: File too large: nothing more is staged")
    assert not os.listdir(folder)


def test_a_folder_that_can_not_be_made_is_a_warning(make, tmp_path, origin, capfd):
    (tmp_path / "file").touch()
    storage = make(folder=tmp_path / "file" / "dataset")
    storage.prefetch(NAMES)
    _check_reads(storage, origin, 10)
    assert capfd.readouterr().err.startswith(f"warning: {tmp_path / 'file' / 'dataset'}: Not a directory: nothing more")


class _Held(LocalStorage):
    """A folder that waits in the middle of a file, as the server does."""

    def __init__(self, folder):
        super().__init__(folder)
        self.held, self.go = threading.Event(), threading.Event()

    def read_into(self, name, offset, buffer):
        if offset >= 2 * stage.CHUNK:
            self.held.set()
            self.go.wait()
        super().read_into(name, offset, buffer)


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_closing_stops_a_download_and_leaves_nothing(make, server, folder, origin, kind):
    server.hold_after = 2 * stage.CHUNK
    slow = _Held(origin) if kind == "local" else server
    storage = make(slow if kind == "local" else None)
    storage.prefetch(NAMES)
    assert slow.held.wait(20)
    assert len(os.listdir(folder)) == 2
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(storage.close)
        _until(storage._stop.is_set)
        slow.go.set()
        closing.result()
    assert not os.listdir(folder)
    assert storage.downloaded_bytes == 3 * stage.CHUNK
