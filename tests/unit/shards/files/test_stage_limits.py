"""Node-local copies where there is no room: quotas, full disks, copies that are evicted or cut short."""

import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.staging import NAMES, SIZE, Process, check_reads, staged, until, whole

from shards.files import stage
from shards.files.processes import host_name
from shards.files.stage import LOCK
from shards.files.storage import LocalStorage

pytestmark = pytest.mark.usefixtures("small_steps")


@contextlib.contextmanager
def _watched(folder, quota):
    """Look all the time whether the folder keeps to its quota."""
    most, ended = [0], threading.Event()

    def _watch():
        while not ended.is_set():
            with contextlib.suppress(FileNotFoundError):  # a file that went meanwhile may never have met the others
                seen = {path: path.stat() for path in folder.glob("*") if LOCK not in path.name}
                if all(path.stat().st_ino == before.st_ino for path, before in seen.items()):
                    most.append(sum(before.st_size for before in seen.values()))

    watcher = threading.Thread(target=_watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    assert max(most) <= quota


def test_the_least_recently_read_make_room(make, folder, origin):
    storage = make(quota=3 * SIZE)
    with _watched(folder, 3 * SIZE):
        storage.prefetch(NAMES[:3])
        until(staged(folder, NAMES[:3]))
        for name in NAMES[1], NAMES[0]:
            check_reads(storage, origin, 1, [name])
        storage.prefetch(NAMES[3:5])
        until(staged(folder, [NAMES[0], *NAMES[3:5]]))
        check_reads(storage, origin)
    assert (storage.staged, storage.evicted) == (5, 2)


def test_a_dataset_above_the_quota_keeps_what_fits(make, folder, origin):
    storage = make(quota=4 * SIZE + 5)
    with _watched(folder, 4 * SIZE + 5):
        storage.prefetch(NAMES)
        until(staged(folder, [*NAMES[:4]]))
        storage.prefetch(NAMES)  # as the next epoch does
        check_reads(storage, origin)
    assert (storage.staged, storage.evicted) == (4, 0)
    assert 0 < storage.read_through < 60


def test_processes_share_a_quota(server, folder, files, origin):
    quota = 3 * SIZE
    folder.mkdir(parents=True)
    with _watched(folder, quota):
        one = Process(server.url, folder, files, NAMES, quota)
        two = Process(server.url, folder, files, NAMES[::-1], quota)
        until(lambda: len(whole(folder)) == 3)
        three = Process(server.url, folder, files, NAMES[:1], quota)
        for process in one, two, three:
            for name in NAMES:
                assert process.read(name, 100, 5000) == (origin / name).read_bytes()[100:5100]
        ended = [process.end() for process in (one, two, three)]
    assert [err for _, err in ended] == ["", "", ""]


def test_an_evicted_file_is_read_to_its_end_and_then_closed(make, folder, origin, monkeypatch):
    reader, other = make(), make(quota=SIZE)
    reader.prefetch(NAMES[:1])
    until(staged(folder, NAMES[:1]))
    check_reads(reader, origin, 5, NAMES[:1])
    other.prefetch(NAMES[1:2])
    until(staged(folder, NAMES[1:2]))
    assert other.evicted == 1
    check_reads(reader, origin, 5, NAMES[:1])
    assert reader.read_through == 0 and f"{folder / NAMES[0]} (deleted)" in _open_files()
    monkeypatch.setattr(reader, "_next_look", 0.0)
    check_reads(reader, origin, 5, NAMES[:1])
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
    until(staged(folder, NAMES[:1]))
    with open(folder / NAMES[0], "r+b") as file:
        file.write(b"wrong")
    for reader in storage, other:
        data = bytearray(5)
        reader.read_into(NAMES[0], 0, memoryview(data))
        assert data == b"wrong"
    storage.discard(NAMES[0])
    check_reads(storage, origin, 5, NAMES[:1])
    until(staged(folder, NAMES[:1]))
    other.discard(NAMES[0])  # finds it replaced, and keeps it
    storage.discard("unknown")
    check_reads(other, origin, 5, NAMES[:1])
    assert staged(folder, NAMES[:1])()
    assert (storage.staged, other.staged, other.read_through) == (2, 0, 0)


@pytest.mark.parametrize("opened", [False, True])
def test_a_copy_that_was_cut_short_is_fetched_again(make, folder, origin, opened):
    storage = make()
    storage.prefetch(NAMES[:1])
    until(staged(folder, NAMES[:1]))
    if opened:
        check_reads(storage, origin, 5, NAMES[:1])
    os.truncate(folder / NAMES[0], 1000)
    storage = storage if opened else make()
    data = bytearray(10)
    storage.read_into(NAMES[0], 2000, memoryview(data))
    assert data == (origin / NAMES[0]).read_bytes()[2000:2010]
    until(lambda: staged(folder, NAMES[:1])() and (folder / NAMES[0]).stat().st_size == SIZE)
    check_reads(storage, origin, 5, NAMES[:1])


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
    until(storage._stop.is_set)
    storage.prefetch(NAMES)
    check_reads(storage, origin, 20)
    until(staged(folder, []))
    assert (storage.staged, storage.read_through) == (0, 20)
    assert capfd.readouterr().err == (
        f"warning: {folder}: No space left on device on {host_name()}: free some space; staging stopped, the rest is "
        f"read from {server.url}\n"
    )


def test_a_limit_of_file_sizes_is_a_warning(server, folder, files, origin):
    process = Process(server.url, folder, files, limit=SIZE // 2)
    assert process.read(NAMES[0], 7, 100) == (origin / NAMES[0]).read_bytes()[7:107]
    counts, err = process.end()
    assert counts[0] == 0 and err.count("\n") == 1
    assert err.startswith(
        f"warning: {folder}: File too large on {host_name()}: raise the limit of file sizes (ulimit -f); st"
    )
    assert not os.listdir(folder)


def test_a_folder_that_can_not_be_made_is_a_warning(make, tmp_path, origin, capfd):
    (tmp_path / "file").touch()
    storage = make(folder=tmp_path / "file" / "dataset")
    storage.prefetch(NAMES)
    check_reads(storage, origin, 10)
    assert capfd.readouterr().err.startswith(
        f"warning: {tmp_path / 'file' / 'dataset'}: Not a directory on {host_name()}: put its folder back; staging st"
    )


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
        until(storage._stop.is_set)
        slow.go.set()
        closing.result()
    assert not os.listdir(folder)
    assert storage.downloaded_bytes == 3 * stage.CHUNK
