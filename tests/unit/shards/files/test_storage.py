"""Byte ranges from folders and servers: exact under threads, and every fault as one line or a new attempt."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support.processes import REPOSITORY
from support.staging import SIZE, STORED, read_range

from shards.errors import ShardError, UnreachableError
from shards.files import patience, storage
from shards.files.patience import OPENING_S, PATIENCE_S
from shards.files.storage import LocalStorage, RemoteStorage, open_storage


def _open_files(folder):
    """This process's open files in a folder."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return [link for link in links if link.startswith(f"{folder}/")]


def _check_random_ranges(source, folder, count):
    files = {name: (folder / name).read_bytes() for name in STORED}
    rng = np.random.default_rng(1)
    offsets = rng.integers(0, SIZE, count)
    asked = [(STORED[rng.integers(len(STORED))], int(at), int(rng.integers(0, SIZE - at + 1))) for at in offsets]
    with ThreadPoolExecutor(16) as pool:
        for (name, offset, length), data in zip(
            asked, pool.map(lambda ask: read_range(source, *ask), asked), strict=True
        ):
            assert data == files[name][offset : offset + length]


def _memory(folder):
    import fsspec

    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe_file(f"/dataset/{path.name}", path.read_bytes())
    return "memory://dataset"


@pytest.mark.parametrize("kind", ["path", "file", "memory", "http"])
def test_random_ranges_from_many_threads_are_exact(origin, server, kind):
    location = {"path": lambda: origin, "file": origin.as_uri, "memory": lambda: _memory(origin)}
    source = open_storage(location.get(kind, lambda: server.url)())
    assert isinstance(source, LocalStorage) == (kind in ("path", "file"))
    _check_random_ranges(source, origin, 150)
    assert source.read(STORED[0]) == (origin / STORED[0]).read_bytes()
    assert source.read("empty") == b""
    assert source.size(STORED[0]) == SIZE
    with pytest.raises(ShardError, match=rf"{re.escape(source.url)}/nothing: missing; .*copy or pack it again"):
        source.size("nothing")
    source.close()


def test_a_file_url_is_unquoted(tmp_path):
    folder = tmp_path / "with space#and 100%"
    folder.mkdir()
    (folder / "name").write_bytes(b"bytes")
    assert open_storage(folder.as_uri()).read("name") == b"bytes"


@pytest.mark.parametrize("kind", ["path", "memory", "http"])
@pytest.mark.parametrize("offset", [SIZE - 10, SIZE, SIZE + 5])
def test_a_file_that_ends_early_is_an_error(origin, server, kind, offset):
    source = open_storage({"path": origin, "http": server.url}.get(kind) or _memory(origin))
    with pytest.raises(ShardError, match=f"cut short: 20 bytes requested at offset {offset}, file has {SIZE}; "):
        read_range(source, STORED[0], offset, 20)


@pytest.mark.parametrize("kind", ["path", "memory", "http"])
def test_a_missing_file_is_an_error(origin, server, kind):
    source = open_storage({"path": origin, "http": server.url}.get(kind) or _memory(origin))
    with pytest.raises(ShardError, match=r"shard-999999\.tar: missing"):
        read_range(source, "shard-999999.tar", 0, 20)
    assert server.requests["shard-999999.tar"] == (kind == "http")


def test_buffers_of_other_types_are_filled_whole(origin, remote):
    for source in LocalStorage(origin), remote:
        values = np.empty((3, 5), np.int32)
        source.read_into(STORED[1], 8, memoryview(values))
        assert values.tobytes() == (origin / STORED[1]).read_bytes()[8:68]


def test_short_reads_are_continued(origin, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda number, buffers, offset: preadv(number, [buffers[0][:7]], offset))
    assert read_range(LocalStorage(origin), STORED[0], 3, 100) == (origin / STORED[0]).read_bytes()[3:103]


def test_a_file_cut_while_open_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))
    source = LocalStorage(tmp_path)
    read_range(source, "a", 0, 1000)
    os.truncate(tmp_path / "a", 400)
    with pytest.raises(ShardError, match="1000 bytes requested at offset 0, file has 400"):
        read_range(source, "a", 0, 1000)


def test_few_files_stay_open_and_closing_hurts_no_reader(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_allowed_files", lambda: 8)
    copy = Path(shutil.copytree(origin, tmp_path / "copy"))
    source = LocalStorage(copy)
    _check_random_ranges(source, copy, 600)
    assert len(_open_files(copy)) == 2
    source.close()
    assert not _open_files(copy)


def test_a_file_that_was_being_opened_at_a_close_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    source, really_open = LocalStorage(tmp_path), os.open

    def _open_and_replace(*asked):
        number = really_open(*asked)
        monkeypatch.undo()
        (tmp_path / "a").unlink()
        (tmp_path / "a").write_bytes(b"new")
        source.close()
        return number

    monkeypatch.setattr(os, "open", _open_and_replace)
    assert read_range(source, "a", 0, 3) == b"old"
    assert read_range(source, "a", 0, 3) == b"new"


def test_the_limit_of_open_files_is_raised():
    code = (
        "import resource; from shards.files.storage import LocalStorage; from pathlib import Path;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); LocalStorage(Path());"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(shown.stdout) == min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], storage.MOST_FILES)


def test_local_errors_name_the_file(origin):
    with pytest.raises(ShardError, match=re.escape(f"{origin}: can't be read: Is a directory; copy or pack it again")):
        read_range(LocalStorage(origin.parent), origin.name, 0, 1)


def test_importing_it_imports_neither_fsspec_nor_torch():
    code = (
        "import sys, shards.files.storage, shards.files.stage; print({'fsspec', 'torch', 'aiohttp'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_a_server_that_is_gone(pauses):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        remote = RemoteStorage(f"http://127.0.0.1:{unused.getsockname()[1]}", sleep=pauses.append)
        asks = (lambda: remote.size("a"), OPENING_S), (lambda: read_range(remote, "a", 0, 1), PATIENCE_S)
        for ask, wanted in asks:
            pauses.clear()
            with pytest.raises(UnreachableError, match=r"\d+ attempts in \d+ s, the last one: ClientConnectorError: "):
                ask()
            assert sum(pauses) >= wanted


def test_an_answer_that_does_not_come_is_tried_again(origin, server, remote, pauses, monkeypatch):
    monkeypatch.setattr(storage, "TIMEOUT_S", 0.1)
    server.hold_after = 0
    remote._patience.sleep = lambda pause: (pauses.append(pause), server.go.set() if len(pauses) == 2 else None)
    assert read_range(remote, STORED[0], 0, 10) == (origin / STORED[0]).read_bytes()[:10]
    assert len(pauses) >= 2


def test_a_server_without_ranges_is_named_before_it_sends_the_file(origin, server, remote, pauses):
    server.ranges = False
    assert remote.read(STORED[0]) == (origin / STORED[0]).read_bytes()
    server.hold_after = 0  # nothing more is sent: the headers say enough
    for offset, length in (0, 100), (100, 100), (100, SIZE):
        with pytest.raises(ShardError, match=f"{STORED[0]}: the server ignores range requests"):
            read_range(remote, STORED[0], offset, length)
    assert not pauses


def test_a_longer_answer_from_any_backend_is_an_error(origin, monkeypatch):
    remote = RemoteStorage(_memory(origin))
    monkeypatch.setattr(type(remote._filesystem), "cat_file", lambda self, path, **_: bytes(SIZE))
    with pytest.raises(ShardError, match="the server ignores range requests and sends the complete file"):
        read_range(remote, STORED[0], 0, 10)


@pytest.mark.parametrize("package", ["fsspec", "aiohttp", "s3fs"])
def test_a_missing_package_is_one_line(monkeypatch, package):
    for module in [name for name in sys.modules if name.split(".")[0] in ("fsspec", package)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    url = "s3://bucket/data" if package == "s3fs" else "https://user:secret@host/data"
    with pytest.raises(ShardError, match=rf"{package}.*; pip install 'spectralforge\[remote\]'") as raised:
        open_storage(url)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_an_unknown_protocol_is_one_line():
    with pytest.raises(ShardError, match=r"nosuch://host/data: .*nosuch.*; check the URL"):
        open_storage("nosuch://host/data")


def test_closing_ends_the_pauses(server, monkeypatch):
    monkeypatch.setattr(patience, "PAUSE_S", 1e6)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 1e6)
    remote = RemoteStorage(server.url)
    server.fail = 1000
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_range, remote, STORED[0], 0, 10)
        while not server.requests[STORED[0]]:
            time.sleep(0.001)
        remote.close()
        with pytest.raises(ShardError, match="the dataset was closed"):
            reading.result()


def test_a_forked_process_reads_on(origin, server, remote):
    wanted = read_range(remote, STORED[0], 0, 10)
    child = os.fork()
    if not child:
        os._exit(0 if read_range(remote, STORED[0], 0, 10) == wanted else 1)
    assert os.waitpid(child, 0)[1] == 0
