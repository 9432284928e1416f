"""Copies on the node: fetched once, whole or absent whatever happens, within the quota, and never in the way."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.staging import NAMES, SIZE, Process, check_reads, staged, until, whole

from shards.errors import ShardError
from shards.files import stage
from shards.files import storage as storage_module
from shards.files.stage import LOCK, StagedFile
from shards.files.storage import LocalStorage

pytestmark = pytest.mark.usefixtures("small_steps")


def test_reads_are_right_before_while_and_after_files_are_staged(make, server, folder, origin):
    storage = make()
    check_reads(storage, origin, 10)
    assert storage.read_through == 10 and storage.staged == 0
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(check_reads, storage, origin) for _ in range(4)]
        storage.prefetch(NAMES)
        assert [read.result() for read in reads]
    until(staged(folder, NAMES))
    assert (storage.staged, storage.downloaded_bytes, storage.evicted) == (6, 6 * SIZE, 0)
    before, sent = storage.read_through, server.sent.total()
    check_reads(storage, origin)
    assert storage.read(NAMES[2]) == (origin / NAMES[2]).read_bytes() and storage.size(NAMES[2]) == SIZE
    assert (storage.read_through, server.sent.total()) == (before, sent)
    assert storage.url == server.url


def test_files_come_in_the_order_asked_for(make, server, folder):
    storage = make()
    storage.prefetch([NAMES[4], NAMES[1]])
    storage.prefetch([NAMES[0]])
    until(staged(folder, [NAMES[4], NAMES[1], NAMES[0]]))
    assert list(server.sent) == [NAMES[4], NAMES[1], NAMES[0]]


def test_files_of_other_names_are_read_through(make, files, origin):
    storage = make(files=files[:2])
    storage.prefetch(NAMES)
    assert storage.read(NAMES[5]) == (origin / NAMES[5]).read_bytes()
    with pytest.raises(ShardError, match="nothing: missing"):
        storage.size("nothing")


def test_two_processes_fetch_each_file_once(server, folder, files, origin):
    processes = [Process(server.url, folder, files) for _ in range(2)]
    until(staged(folder, NAMES))
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
    assert whole(folder) == NAMES[:1]
    assert [name for name in os.listdir(folder) if name.endswith(LOCK)]
    server.go.set()
    until(staged(folder, NAMES))
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
    until(staged(folder, NAMES))
    check_reads(storage, origin, 20)


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
    check_reads(storage, origin, 10)


def test_a_damaged_source_is_named_and_read_through(make, server, folder, files, origin, capfd):
    files[1] = StagedFile(NAMES[1], SIZE, files[0].sha256)
    storage = make(files=files)
    storage.prefetch(NAMES)
    until(staged(folder, [NAMES[0], *NAMES[2:]]))
    assert storage.staged == 5
    assert capfd.readouterr().err == (
        f"warning: not staged: {server.url}/{NAMES[1]}: "
        "its SHA-256 differed twice from the packed one; copy or pack it again\n"
    )
    (folder / NAMES[5]).unlink()
    storage.prefetch(NAMES)  # as the next epoch does
    until(lambda: storage.staged == 6)
    assert server.sent[NAMES[1]] == 2 * SIZE
    check_reads(storage, origin)
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
    until(staged(folder, NAMES[:1]))
    assert (folder / NAMES[0]).read_bytes() == (origin / NAMES[0]).read_bytes()
    assert (storage.staged, storage.downloaded_bytes) == (1, 2 * SIZE)


def test_a_source_that_fails_is_a_warning(make, server, folder, files, capfd):
    storage = make(files=[StagedFile("gone", 10, ""), *files])
    storage.prefetch(["gone", *NAMES])
    until(staged(folder, NAMES))
    assert capfd.readouterr().err == (
        f"warning: not staged: {server.url}/gone: missing, though the manifest lists it: put it back, or mount its "
        "file system again, and run the command again\n"
    )


def test_a_source_that_was_away_is_copied_when_it_answers_again(make, server, folder, monkeypatch, capfd):
    monkeypatch.setattr(storage_module, "PATIENCE_S", 0.05)
    server.fail = 10**6
    storage = make()
    storage.prefetch(NAMES)
    until(lambda: server.requests.total() > 20)
    assert not whole(folder)
    server.fail = 0
    until(staged(folder, NAMES))
    assert "not staged" not in capfd.readouterr().err
