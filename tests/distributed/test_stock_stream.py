"""The stock WebDataset stream under a DataLoader with two workers on two ranks."""

import json
from pathlib import Path

import pytest
from support.processes import REPOSITORY, run_ranks
from support.tiles import write_archive

from shards.pack.build import PackConfig, pack

pytestmark = pytest.mark.distributed


def test_every_tile_comes_once_an_epoch(tmp_path: Path) -> None:
    written = write_archive(tmp_path / "tiles")
    pack(tmp_path / "tiles", tmp_path / "shards", PackConfig(tiles_per_shard=2))
    script = REPOSITORY / "tests" / "support" / "stock_stream.py"
    run_ranks(script, 2, str(tmp_path / "shards"), str(tmp_path), timeout=300)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    expected = sorted([key, int(tile.sum())] for key, tile in written.items())
    for epoch in range(2):
        assert all(rank[epoch] for rank in ranks)
        assert sorted(sample for rank in ranks for sample in rank[epoch]) == expected
    assert [rank[0] for rank in ranks] != [rank[1] for rank in ranks]  # another order
