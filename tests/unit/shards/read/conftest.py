"""A dataset of ten tiles in three shards, and readers of it."""

import shutil
from pathlib import Path

import pytest
from support.tiles import write_archive

from shards.pack.build import pack
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Ten tiles in three shards, and their values by key."""
    folder = tmp_path_factory.mktemp("reader")
    values = write_archive(folder / "source")
    pack(folder / "source", folder / "shards", PackConfig(tiles_per_shard=3))
    return folder / "shards", values


@pytest.fixture
def copy(packed, tmp_path):
    return Path(shutil.copytree(packed[0], tmp_path / "shards"))


@pytest.fixture
def opened(request):
    """Open readers that are closed when the test ends."""

    def _open(folder, threads=1):
        reader = ShardReader(folder, threads)
        request.addfinalizer(reader.close)
        return reader

    return _open
