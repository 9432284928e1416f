"""A source of ten tiles, and the dataset of three shards that is packed from it."""

import shutil
from pathlib import Path

import pytest
from support.tiles import write_archive

from shards.pack.build import pack
from shards.pack.scan import PackConfig


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A source of ten tiles and its values by key. Tests that change it take a copy."""
    source = tmp_path_factory.mktemp("archive")
    return source, write_archive(source)


@pytest.fixture(scope="module")
def packed(archive, tmp_path_factory):
    """The archive in three shards. Tests that change it take a copy."""
    dest = tmp_path_factory.mktemp("packed") / "shards"
    assert pack(archive[0], dest, PackConfig(tiles_per_shard=3)).written == 3
    return dest


@pytest.fixture
def copy(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "copy"))
