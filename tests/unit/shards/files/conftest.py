"""Files behind a server, and storages that read or stage them."""

import hashlib

import numpy as np
import pytest
from support.range_server import RangeServer
from support.staging import NAMES, SIZE, STORED

from shards.files import stage
from shards.files.stage import StagedFile, StagedStorage
from shards.files.storage import RemoteStorage


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A folder of twelve files and an empty one."""
    folder = tmp_path_factory.mktemp("stage")
    rng = np.random.default_rng(0)
    for name in STORED:
        (folder / name).write_bytes(rng.bytes(SIZE))
    (folder / "empty").touch()
    return folder


@pytest.fixture
def files(origin):
    """The first six, to be staged."""
    return [StagedFile(name, SIZE, hashlib.sha256((origin / name).read_bytes()).hexdigest()) for name in NAMES]


@pytest.fixture
def server(origin):
    with RangeServer(origin) as server:
        yield server


@pytest.fixture
def pauses():
    """The pauses between attempts of ``remote``, which does not really sleep."""
    return []


@pytest.fixture
def remote(server, pauses):
    remote = RemoteStorage(server.url, sleep=pauses.append)
    yield remote
    remote.close()


@pytest.fixture
def small_steps(monkeypatch):
    """Copies in pieces of 64 KiB, and short waits."""
    monkeypatch.setattr(stage, "CHUNK", 1 << 16)
    monkeypatch.setattr(stage, "POLL_S", 0.05)


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
