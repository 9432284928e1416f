"""Shards in an object store behind s3fs, with a server that fails: uploaded, read, trained from, resumed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.faults import Training
from support.machine_runs import EVERY, at_step, check_failed, check_goes_on, write_config
from support.processes import REPOSITORY
from support.s3_server import S3Server
from support.staging import until
from support.tiles import write_archive

from shards.errors import ShardError, UnreachableError
from shards.files import storage
from shards.files.storage import RemoteStorage
from shards.format.manifest import MANIFEST
from shards.pack.build import PackConfig, pack
from shards.pack.upload import upload
from shards.read.reader import ShardReader

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_archive(folder / "tiles", size=24)
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=2))
    return folder / "shards"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def check_equal(url: str, shards: Path) -> None:
    here, there = ShardReader(shards), ShardReader(url)
    tiles = [np.empty((len(here), *here.tile_shape), np.int16) for _ in range(2)]
    for reader, out in zip((here, there), tiles, strict=True):
        reader.read(range(len(here)), out)
        reader.close()
    assert here.manifest == there.manifest and np.array_equal(*tiles)


def test_an_upload_survives_errors_and_cut_responses(server, shards):
    url = f"s3://{server.bucket}/set"
    server.fail, server.cut, server.slow = 12, 4, 4
    done = upload(shards, url)
    assert server.fail == server.cut == server.slow == 0
    assert done.written == done.files == 2 * len(list(shards.glob("*.tar"))) + 4
    check_equal(url, shards)
    puts = server.requests["PUT"]
    assert upload(shards, url).written == 0 and server.requests["PUT"] == puts


def test_an_upload_that_was_killed_goes_on_where_it_was(server, shards):
    url = f"s3://{server.bucket}/killed"
    server.slow, server.delay = 10**6, 0.3
    command = [sys.executable, "-m", "shards", "upload", str(shards), url, "--workers", "1"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | server.environment) as process:
        before = server.requests["PUT"]
        until(lambda: server.requests["PUT"] > before + 3)
        process.kill()
    with pytest.raises(ShardError, match=f"{url}/{MANIFEST}: missing"):
        ShardReader(url)
    server.slow = 0
    done = upload(shards, url)
    assert 0 < done.written < done.files
    check_equal(url, shards)


def test_other_bytes_and_another_dataset_are_noticed(server, shards, tmp_path):
    import s3fs

    url = f"s3://{server.bucket}/set"
    upload(shards, url)
    name = next(shards.glob("*.tar")).name
    data = bytearray((shards / name).read_bytes())
    data[1000] ^= 1
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{url}/{name}", bytes(data))
    assert upload(shards, url).written == 1
    check_equal(url, shards)
    write_archive(tmp_path / "tiles", size=16)
    pack(tmp_path / "tiles", tmp_path / "other", PackConfig(tiles_per_shard=2))
    with pytest.raises(ShardError, match=f"{url}: another dataset is there; choose another URL, or remove it first"):
        upload(tmp_path / "other", url)
    with pytest.raises(ShardError, match="s3://nowhere/set: can't be written: no such bucket; make it"):
        upload(shards, "s3://nowhere/set")


def test_a_store_that_stays_broken_is_one_line_with_url_and_remedy(server, shards, monkeypatch):
    url = f"s3://{server.bucket}/set"
    upload(shards, url)
    monkeypatch.setattr(storage, "OPENING_S", 5.0)
    monkeypatch.setattr(RemoteStorage._repeat, "__defaults__", (5.0,))
    server.fail = 10**6
    with pytest.raises(UnreachableError) as raised:
        ShardReader(url)
    line = str(raised.value)
    assert line.startswith(f"{url}/{MANIFEST}: can't be read: ") and " in " in line.partition("attempt")[2]
    assert line.endswith("check the network and the server, and run the command again")
    server.fail, server.expired = 0, True
    with pytest.raises(UnreachableError, match="Forbidden; check the URL and the credentials"):
        ShardReader(url)


def test_a_store_that_stands_still_is_asked_again(server, shards, monkeypatch):
    url = f"s3://{server.bucket}/set"
    upload(shards, url)
    monkeypatch.setattr(storage, "TIMEOUT_S", 0.5)
    reader = ShardReader(url)
    server.slow, server.delay = 2, 20.0
    out = np.empty((1, *reader.tile_shape), np.int16)
    reader.read([0], out)
    assert server.slow == 0


def test_a_training_reads_from_a_store_that_fails(server, shards, tmp_path):
    path = write_config(tmp_path / "config.yaml", shards)
    reference = Training(tmp_path / "whole", path)
    assert reference.launch(1).codes == [0]
    url = f"s3://{server.bucket}/set"
    upload(shards, url)
    training = Training(tmp_path / "run", path, f"data.shards={url}")

    server.fail, server.cut, server.slow = 15, 5, 5
    ended = training.launch(1, at_step(EVERY + 2, lambda: setattr(server, "expired", True)))
    check_failed(ended, f"{url}/shard-", "token has expired", "check the URL and the credentials")
    assert server.fail == server.cut == server.slow == 0
    server.expired = False
    assert not list(training.folder.glob("quarantine-*"))
    check_goes_on(training, reference)
