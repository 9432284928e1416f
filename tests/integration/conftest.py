"""A dataset of ten tiles that commands train on."""

from pathlib import Path

import pytest
from support.tiles import write_archive

from shards.pack.build import pack
from shards.pack.scan import PackConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_archive(folder / "tiles", size=40)
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    return folder / "shards"
