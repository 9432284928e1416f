"""`pack` on a disk that is really full: one line, and the same command goes on when there is room."""

import re

from support.machine import SmallDisk
from support.tiles import folder_bytes, write_archive

from shards.__main__ import main


def test_a_full_disk_keeps_finished_shards_and_the_same_command_goes_on(tmp_path, capsys):
    write_archive(tmp_path / "tiles")
    options = ["--tiles-per-shard", "2", "--workers", "1"]
    assert main(["pack", str(tmp_path / "tiles"), str(tmp_path / "whole"), *options]) == 0
    with SmallDisk(tmp_path / "disk", megabytes=0.25) as disk:
        command = ["pack", str(tmp_path / "tiles"), str(disk.folder / "shards"), *options]
        capsys.readouterr()
        assert main(command) == 1
        line = capsys.readouterr().err
        advice = "free some space; finished shards are kept; run the same command again to continue"
        file = rf"{disk.folder}/shards/shard-00000\d\.(tar|index\.json)"
        assert re.fullmatch(f"error: {file}: No space left on device: {advice}\n", line)
        finished = folder_bytes(disk.folder / "shards")
        assert any(name.endswith(".index.json") for name in finished)
        assert not any(name.endswith(".tmp") for name in finished)
        disk.grow(4)
        assert main(command) == 0
        whole = folder_bytes(tmp_path / "whole")
        assert folder_bytes(disk.folder / "shards") == whole
        assert all(whole[name] == data for name, data in finished.items())
