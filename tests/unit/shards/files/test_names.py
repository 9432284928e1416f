"""Names and sizes in files of others: nothing outside a folder is touched, and no memory is taken for a number."""

import hashlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support.tiles import write_archive

from pretrain.checkpointing.checkpoint import find_damage
from shards.errors import ShardError
from shards.files.atomic import write_atomic
from shards.files.names import inner_path, plain_name
from shards.files.stage import StagedFile, StagedStorage
from shards.files.storage import LocalStorage
from shards.format.manifest import Manifest, parse_json, read_manifest
from shards.pack.build import pack
from shards.pack.scan import PackConfig
from shards.read.reader import ShardReader

EVIL = ["../../victim.txt", "/etc/passwd", "..", ".", "", "a/b.tar", "a\\b.tar", "a\0.tar", "a\nb.tar", "x" * 300]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    write_archive(folder / "source")
    pack(folder / "source", folder / "shards", PackConfig(tiles_per_shard=3, codec="fast"))
    return folder / "shards"


@pytest.mark.parametrize("name", EVIL)
def test_a_name_that_leads_out_of_its_folder_is_refused(name):
    with pytest.raises(ValueError, match="name"):
        plain_name(name)


@pytest.mark.parametrize("name", ["shard-000000.tar", "上海.tar", "with space.tar", "..a", "a..b", "~", "a:b"])
def test_plain_names_pass(name):
    assert plain_name(name) == name


@pytest.mark.parametrize("path", ["a/../../b.tif", "/a.tif", "a//b.tif", "", "./a.tif", "a/\0.tif", "../x.tar!a.tif"])
def test_a_path_that_leads_out_is_refused(path):
    with pytest.raises(ValueError, match="not a path below"):
        inner_path(path)


@pytest.mark.parametrize("path", ["a.tif", "enmap/0001/0002.tif", "a.tar!../odd member.tif", "a..b/c d.tif"])
def test_inner_paths_pass(path):
    assert inner_path(path) == path


def _forged(folder: Path, **changes) -> bytes:
    """A manifest with other values, sealed anew, as whoever serves it can."""
    values = json.loads((folder / "manifest.json").read_bytes()) | changes
    values.pop("checksum")
    seal = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps(values | {"checksum": seal}).encode()


def _shards(folder: Path, **changes) -> list[dict]:
    first, *rest = json.loads((folder / "manifest.json").read_bytes())["shards"]
    return [first | changes, *rest]


@pytest.mark.parametrize("name", [*EVIL, "manifest.json", "shard-000001.tar", "quota.lock"])
def test_a_manifest_with_such_a_shard_is_refused(packed, name):
    with pytest.raises(ShardError, match=r"^M: damaged: key|^M: damaged: two") as raised:
        parse_json(_forged(packed, shards=_shards(packed, name=name)), Manifest, "M")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"table": "../table.npy"},
        {"table": "manifest.json"},
        {"content_hash": "../../../evil"},
        {"tile_shape": [202, 100_000, 100_000]},
        {"tile_shape": [202, -8, 8]},
        {"tile_shape": [202, 8]},
        {"tile_shape": [203, 8, 8]},
        {"mean": [1.0]},
        {"std": [float("nan")] * 202},
        {"tiles": -1},
    ],
)
def test_a_manifest_that_cannot_be_is_refused(packed, changes):
    with pytest.raises(ShardError, match=r"^M: damaged: (?!its checksum)"):
        parse_json(_forged(packed, **changes), Manifest, "M")


@pytest.mark.parametrize("side", [9, 100, 1000, 2000])
def test_a_shape_that_the_shards_cannot_hold_takes_no_memory(packed, tmp_path, side):
    folder = Path(shutil.copytree(packed, tmp_path / "shards"))
    (folder / "manifest.json").write_bytes(_forged(packed, tile_shape=[202, side, side]))
    tracemalloc.start()
    try:
        with pytest.raises(ShardError, match="tile"):
            reader = ShardReader(folder)
            reader.read_encoded(0)
            reader.read_tile(0, np.empty((202, side, side), np.int16))
        assert tracemalloc.get_traced_memory()[1] < (64 << 20)
    finally:
        tracemalloc.stop()


def test_deep_json_is_one_line():
    with pytest.raises(ShardError, match="nested too deeply"):
        parse_json(b"[" * 100_000, Manifest, "M")


def test_staging_removes_nothing_outside_its_folder(packed, tmp_path):
    """A manifest that is served from a URL names a file of the user's as a shard."""
    server, stage = Path(shutil.copytree(packed, tmp_path / "server")), tmp_path / "node" / "stage"
    victim = tmp_path / "node" / "victim.txt"
    stage.mkdir(parents=True)
    victim.write_text("mine")
    (server / "manifest.json").write_bytes(_forged(packed, shards=_shards(packed, name="../../victim.txt")))
    with pytest.raises(ShardError, match="not a plain file name"):
        ShardReader(server, stage=stage)
    assert victim.read_text() == "mine"


def test_links_that_were_planted_in_a_shared_folder_are_not_followed(packed, tmp_path, capsys):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "a.tar").write_text("mine, and of another size")
    os.symlink(victim, tmp_path / "stage")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.tar").write_bytes(b"0123")
    staged = StagedStorage(LocalStorage(tmp_path / "source"), tmp_path / "stage", [StagedFile("a.tar", 4, "0" * 64)])
    buffer = bytearray(4)
    staged.read_into("a.tar", 0, memoryview(buffer))
    staged.prefetch(["a.tar"])
    staged.close()
    assert buffer == b"0123" and (victim / "a.tar").read_text() == "mine, and of another size"
    assert "a link where a folder for copies was expected" in capsys.readouterr().err


def test_a_link_under_a_temporary_name_is_not_written_through(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("mine")
    monkeypatch.setattr("shards.files.atomic.temporary_path", lambda path: path.with_name("known.tmp"))
    os.symlink(tmp_path / "victim", tmp_path / "known.tmp")
    write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new" and (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


def test_a_seal_of_a_checkpoint_names_files_of_its_folder(tmp_path):
    seal = {"files": {"state.json": {"size": 0, "sha256": ""}, "../../etc/passwd": {"size": 0, "sha256": ""}}}
    (tmp_path / "checkpoint.json").write_text(json.dumps(seal))
    assert find_damage(tmp_path) == f"{tmp_path}/checkpoint.json: missing or unreadable"


def test_what_is_no_folder_of_shards_is_one_line(packed, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "odd" / "manifest.json").mkdir(parents=True)
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    for name, told in (
        ("file", "a file, not a folder"),
        ("odd", "Is a directory"),
        ("dangling", "no such folder"),
        ("loop", "no such folder"),
    ):
        with pytest.raises(ShardError, match=told) as raised:
            read_manifest(tmp_path / name)
        assert str(raised.value).startswith(str(tmp_path / name)) and "\n" not in str(raised.value)
    with pytest.raises(ShardError, match="a URL, but this command reads only folders"):
        read_manifest(Path("https://host/shards"))
