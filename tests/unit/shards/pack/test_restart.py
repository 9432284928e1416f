"""What a second pack finds: it finishes its own work, and refuses what is other work."""

import os
import re
import shutil
from pathlib import Path

import pytest
from support.datasets import stamps
from support.tiles import NODATA, folder_bytes, spectra, write_tile

from shards.errors import ShardError
from shards.files.atomic import atomic_open
from shards.format.manifest import MANIFEST
from shards.pack.build import pack
from shards.pack.scan import PackConfig

CONFIG = PackConfig(tiles_per_shard=3)


def test_a_restart_writes_what_is_missing_and_sweeps_what_is_unfinished(packed, copy, archive):
    kept = stamps(copy)["shard-000000.tar"]
    (copy / MANIFEST).unlink()
    (copy / "shard-000001.tar").unlink()
    (copy / "shard-000002.index.json").unlink()
    for leftover in ("shard-000001.tar.node.77.5.tmp", "shard-000002.index.json.node.77.5.tmp"):
        (copy / leftover).write_bytes(b"half")
    assert pack(archive[0], copy, CONFIG).written == 2
    assert stamps(copy)["shard-000000.tar"] == kept
    assert folder_bytes(copy) == folder_bytes(packed)


def _lose_tar(folder):
    (folder / "shard-000001.tar").unlink()


def _lose_index(folder):
    (folder / "shard-000001.index.json").unlink()


def _cut_tar(folder):
    os.truncate(folder / "shard-000001.tar", 20000)


@pytest.mark.parametrize("damage", [_lose_tar, _lose_index, _cut_tar])
def test_packing_again_mends_a_finished_folder_that_lost_a_file(packed, copy, archive, damage):
    damage(copy)
    pack(archive[0], copy, CONFIG)
    assert folder_bytes(copy) == folder_bytes(packed)


def test_packing_again_rewrites_nothing(copy, archive):
    before = stamps(copy)
    assert pack(archive[0], copy, CONFIG, workers=2).written == 0
    assert stamps(copy) == before


def test_a_pack_killed_before_its_first_file_was_whole_continues(packed, archive, tmp_path):
    dest = tmp_path / "shards"
    dest.mkdir()
    (dest / "pack.json.77.tmp").write_bytes(b"{")
    pack(archive[0], dest, CONFIG)
    assert folder_bytes(dest) == folder_bytes(packed)


@pytest.mark.parametrize("change", [{"tiles_per_shard": 4}, {"seed": 1}, {"size": 16}])
def test_a_folder_packed_with_other_options_is_refused_and_left_alone(copy, archive, change):
    before = stamps(copy)
    with pytest.raises(ShardError, match=re.escape(f"{copy}: was packed with other options")):
        pack(archive[0], copy, CONFIG.model_copy(update=change))
    assert stamps(copy) == before


def _remove_tile(source):
    (source / "enmap/0000231/00003.tif").unlink()


def _change_tile(source):
    path = source / "enmap/0000231/00003.tif"
    size = path.stat().st_size
    write_tile(path, spectra(9, 8), nodata=NODATA)
    assert path.stat().st_size == size


@pytest.mark.parametrize("change", [_remove_tile, _change_tile])
def test_a_folder_packed_from_other_tiles_is_refused(copy, archive, tmp_path, change):
    source = Path(shutil.copytree(archive[0], tmp_path / "source"))
    change(source)
    with pytest.raises(ShardError, match="other tiles"):
        pack(source, copy, CONFIG)


def test_a_foreign_folder_is_refused_and_left_alone(archive, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ShardError, match="not empty and not written by pack"):
        pack(archive[0], tmp_path, CONFIG)
    assert folder_bytes(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    "text", ["", '{"format": 2, "opt', "[]", "{}", '{"format": 2, "options": {}, "generations": []}']
)
def test_a_damaged_record_of_the_options_is_refused(copy, archive, text):
    (copy / "pack.json").write_text(text)
    with pytest.raises(ShardError, match=re.escape(str(copy))):
        pack(archive[0], copy, CONFIG)


def test_a_file_takes_its_name_by_rename_once_it_is_whole(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"old")
    with atomic_open(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        inode = os.fstat(file.fileno()).st_ino
    assert folder_bytes(tmp_path) == {"a.tar": b"new"}
    assert path.stat().st_ino == inode


def test_a_file_that_fails_half_way_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_open(tmp_path / "a.tar") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert folder_bytes(tmp_path) == {"a.tar": b"old"}
