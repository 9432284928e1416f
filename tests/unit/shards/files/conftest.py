"""Six files behind a server, and storages that stage them."""

import hashlib

import numpy as np
import pytest
from support.range_server import RangeServer
from support.staging import NAMES, SIZE

from shards.files.stage import StagedFile, StagedStorage
from shards.files.storage import RemoteStorage


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
