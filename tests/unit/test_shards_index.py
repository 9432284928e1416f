"""`index`: tars that WebDataset wrote are read like our own, and not a byte of them is changed."""

import hashlib
import io
import os
import shutil

import numpy as np
import pytest
import webdataset
from support.tiles import NODATA, write_archive

from shards.__main__ import main
from shards.build import pack
from shards.reader import ShardReader
from shards.scan import PackConfig


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    return folder, write_archive(folder)


def _write_tars(folder, source, values, kind, described=True):
    """Three tars by WebDataset's own writer."""
    folder.mkdir()
    keys = sorted(values)
    for number in range(3):
        with webdataset.TarWriter(str(folder / f"data-{number}.tar")) as writer:
            for key in keys[number::3]:
                location, timestamp = key.split("_")
                sample = {"__key__": key}
                if kind == "tif":
                    sample["tif"] = (source / "enmap" / location / f"{timestamp}.tif").read_bytes()
                else:
                    buffer = io.BytesIO()
                    np.save(buffer, values[key].transpose(1, 2, 0) if kind == "hwc" else values[key])
                    sample["npy"] = buffer.getvalue()
                if described:
                    sample["json"] = {"location": location, "timestamp": timestamp, "date": "2022-07-24"}
                writer.write(sample)
    return folder


def _read_all(folder):
    reader = ShardReader(folder)
    out = np.empty((len(reader), *reader.tile_shape), np.int16)
    reader.read(range(len(reader)), out)
    return reader, {reader.key(row): tile for row, tile in enumerate(out)}


def _hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.parametrize("kind", ["npy", "hwc", "tif"])
@pytest.mark.parametrize("described", [True, False])
def test_tars_of_webdataset_are_read_like_our_own(source, tmp_path, capsys, kind, described):
    folder = _write_tars(tmp_path / "tars", *source, kind, described)
    before = _hashes(folder)
    assert main(["index", str(folder), "--workers", "1"]) == 0
    assert "indexed 10 tiles" in capsys.readouterr().out
    reader, found = _read_all(folder)
    assert found.keys() == source[1].keys()
    for key, tile in source[1].items():
        np.testing.assert_array_equal(found[key], tile)
    assert len(np.unique(reader.table["place"])) == (6 if described else 10)
    assert _hashes(folder) == before
    straight = pack(source[0], tmp_path / "own", PackConfig()).manifest
    assert reader.manifest.sums == straight.sums
    assert main(["verify", str(folder), "--workers", "1"]) == 0


def test_our_own_tars_are_indexed_again_when_the_indexes_are_lost(source, tmp_path):
    pack(source[0], tmp_path / "own", PackConfig(tiles_per_shard=3))
    bare = tmp_path / "bare"
    bare.mkdir()
    for tar in (tmp_path / "own").glob("*.tar"):
        shutil.copy(tar, bare)
    assert main(["index", str(bare), "--workers", "2"]) == 0
    ours, bare_reader = ShardReader(tmp_path / "own"), ShardReader(bare)
    assert ours.table.tobytes() == bare_reader.table.tobytes()
    assert ours.manifest.content_hash == bare_reader.manifest.content_hash


def test_a_second_run_reads_only_what_is_new(source, tmp_path, capsys):
    folder = _write_tars(tmp_path / "tars", *source, "npy")
    main(["index", str(folder), "--workers", "1"])
    (folder / "data-1.index.json").unlink()
    capsys.readouterr()
    main(["index", str(folder), "--workers", "1"])
    assert "(1 read now" in capsys.readouterr().out


def _error(folder, capsys):
    assert main(["index", str(folder), "--workers", "1"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_what_cannot_be_indexed_is_one_line(source, tmp_path, capsys):
    folder = _write_tars(tmp_path / "tars", *source, "npy")
    shutil.copy(folder / "data-0.tar", folder / "data-9.tar")
    assert "is in data-0.tar and in data-9.tar" in _error(folder, capsys)
    (folder / "data-9.tar").unlink()
    os.truncate(folder / "data-2.tar", 60_000)
    assert str(folder / "data-2.tar") in _error(folder, capsys)
    (folder / "data-2.tar").unlink()
    (folder / "b.tar.gz").write_bytes(b"")
    assert "compressed tars" in _error(folder, capsys)
    (tmp_path / "empty").mkdir()
    assert "no .tar files" in _error(tmp_path / "empty", capsys)


def test_a_member_that_is_no_tile_is_set_aside(source, tmp_path, capsys):
    folder = _write_tars(tmp_path / "tars", *source, "npy")
    with webdataset.TarWriter(str(folder / "data-3.tar")) as writer:
        buffer = io.BytesIO()
        np.save(buffer, np.full((202, 4, 4), NODATA, np.int16))
        writer.write({"__key__": "small", "npy": buffer.getvalue()})
    assert main(["index", str(folder), "--workers", "1"]) == 0
    output = capsys.readouterr()
    assert "set aside: data-3.tar!small.npy: holds a tile of (202, 4, 4)" in output.err
    assert "indexed 10 tiles" in output.out
