"""`transcode`: the same samples with another codec or in other shards, compared before the manifest is written."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.datasets import assert_reads, keys_of, read_all, stamps
from support.range_server import RangeServer
from support.tiles import NODATA, folder_bytes, write_archive, write_tile

from shards.__main__ import main
from shards.errors import ShardError
from shards.files.lock import Lock
from shards.format.error_bounds import max_error
from shards.format.manifest import MANIFEST, Manifest, read_manifest, to_json
from shards.pack import transcode as module
from shards.pack.build import pack
from shards.pack.scan import Labels, PackConfig
from shards.pack.transcode import transcode
from shards.read.reader import ShardReader

BOUNDED = '{"id": "bounded_predictor", "max_error": "%s"}'


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Ten tiles with labels in three shards, one source tile set aside; and their values by key."""
    folder = tmp_path_factory.mktemp("labeled")
    values = write_archive(folder / "source")
    for key in values:
        location, timestamp = key.split("_")
        write_tile(folder / f"labels/enmap/{location}/{timestamp}.tif", np.eye(8, dtype=np.uint8) + int(location) % 7)
    (folder / "source/enmap/0150003/04411.tif").write_bytes(b"no raster")
    del values["0150003_04411"]
    config = PackConfig(tiles_per_shard=3)
    pack(folder / "source", folder / "shards", config, labels=Labels(folder / "labels"), max_bad=0.2)
    return folder / "shards", values


@pytest.fixture(scope="module")
def bounded(labeled, tmp_path_factory):
    """The same tiles with errors up to 3 digital numbers."""
    dest = tmp_path_factory.mktemp("bounded") / "shards"
    transcode(str(labeled[0]), dest, BOUNDED % 3)
    return dest


def _run(capfd, *arguments: object) -> tuple[int, str]:
    code = main(["transcode", *map(str, arguments)])
    captured = capfd.readouterr()
    return code, captured.out + captured.err


def _assert_same_rows(before: Path, after: Path) -> None:
    old, new = ShardReader(before), ShardReader(after)
    for name in [name for name in old.table.dtype.names if not name.endswith(("offset", "length", "checksum"))]:
        np.testing.assert_array_equal(old.table[name], new.table[name], err_msg=name)
    for row in range(len(old)):
        np.testing.assert_array_equal(old.read_mask(row), new.read_mask(row))


@pytest.mark.parametrize("codec", ["raw", "fast", "smallest", "zstd"])
def test_samples_keep_values_labels_shards_and_order(labeled, tmp_path, capfd, codec):
    source, values = labeled
    code, text = _run(capfd, source, tmp_path / "new", "--codec", codec, "--workers", 1)
    assert code == 0, text
    assert "transcoded 9 tiles into 3 shards (3 written now)" in text and "every pixel is equal" in text
    assert_reads(ShardReader(tmp_path / "new"), values)
    _assert_same_rows(source, tmp_path / "new")
    before, after = read_manifest(source), read_manifest(tmp_path / "new")
    assert (after.sums, after.rejected, after.made_from.content_hash) == (before.sums, 1, before.content_hash)
    assert max_error(after) == ""
    assert main(["verify", str(tmp_path / "new"), "--workers", "1"]) == 0
    back = tmp_path / "back"
    transcode(str(tmp_path / "new"), back, "compact")
    for number in range(3):  # the bytes that `pack` writes
        name = f"shard-{number:06d}.tar"
        assert (back / name).read_bytes() == (source / name).read_bytes()


def test_shards_of_another_size_keep_the_order_and_the_places_together(labeled, tmp_path, capfd):
    source, values = labeled
    for tiles, shards in ((1, 5), (100, 1)):
        dest = tmp_path / str(tiles)
        code, text = _run(capfd, source, dest, "--tiles-per-shard", tiles, "--workers", 1)
        assert code == 0 and f"9 tiles into {shards} shards" in text
        assert_reads(ShardReader(dest), values)
        assert keys_of(ShardReader(dest)) == keys_of(ShardReader(source))
        assert read_manifest(dest).codec == read_manifest(source).codec
        assert read_manifest(dest).rejected == 1
        assert main(["verify", str(dest), "--workers", "1"]) == 0


def test_a_bound_is_kept_and_missing_values_and_zeros_are_exact(labeled, bounded, capfd):
    source, values = labeled
    for key, tile in read_all(bounded).items():
        assert np.abs(tile.astype(int) - values[key]).max() == 3
        np.testing.assert_array_equal(tile == NODATA, values[key] == NODATA)
        np.testing.assert_array_equal(tile[values[key] == 0], 0)
    assert max_error(read_manifest(bounded)) == "3"
    assert main(["inspect", str(bounded)]) == 0
    assert "max error  3 digital numbers" in capfd.readouterr().out
    assert main(["verify", str(bounded), "--source", str(source.parent / "source"), "--workers", "1"]) == 0


def test_lossy_tiles_stay_lossy(labeled, bounded, tmp_path, capfd):
    code, text = _run(capfd, bounded, tmp_path / "raw", "--codec", "raw", "--workers", 1)
    assert code == 0 and "every pixel is equal" in text
    assert f"{bounded} has errors up to 3 itself: the manifest of {tmp_path / 'raw'} states 3" in text
    assert _run(capfd, bounded, tmp_path / "5", "--max-error", "0.0005", "--workers", 1)[0] == 0
    assert _run(capfd, bounded, tmp_path / "cut", "--tiles-per-shard", 100, "--workers", 1)[0] == 0
    assert _run(capfd, tmp_path / "5", tmp_path / "noise", "--max-error", "noise/2", "--workers", 1)[0] == 0
    bounds = {name: max_error(read_manifest(tmp_path / name)) for name in ("raw", "5", "cut", "noise")}
    assert bounds == {"raw": "3", "5": "8", "cut": "3", "noise": "8 + noise/2"}
    for key, tile in read_all(tmp_path / "5").items():
        assert np.abs(tile.astype(int) - labeled[1][key]).max() <= 8
    for wanted in (("raw", "--max-error", 3), ("raw", "--max-error", 2), ("noise", "--max-error", "noise/3")):
        code, text = _run(capfd, tmp_path / wanted[0], tmp_path / "refused", *wanted[1:])
        assert code == 2 and f"so --max-error {wanted[2]} can't be kept" in text and len(text.splitlines()) == 1
    source = str(labeled[0].parent / "source")
    assert main(["verify", str(tmp_path / "raw"), "--source", source, "--workers", "1"]) == 2
    assert "made from shards with errors up to 3" in capfd.readouterr().err


def test_codes_are_compressed_again_without_another_loss(labeled, bounded, tmp_path):
    blocks = json.dumps({"id": "bounded_predictor", "max_error": "3", "blocks": True})
    made = transcode(str(bounded), tmp_path / "blocks", blocks).manifest
    assert (made.codec, max_error(made)) == (json.loads(blocks), "3")
    assert_reads(ShardReader(tmp_path / "blocks"), read_all(bounded))
    transcode(str(tmp_path / "blocks"), tmp_path / "back", BOUNDED % 3)
    for number in range(3):
        name = f"shard-{number:06d}.tar"
        assert (tmp_path / "back" / name).read_bytes() == (bounded / name).read_bytes()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_killed_run_continues_and_writes_the_same_bytes(labeled, tmp_path, monkeypatch, workers):
    dest, whole = tmp_path / "shards", tmp_path / "whole"
    transcode(str(labeled[0]), whole, "fast")
    written = []

    def write(location, tar, rows, config):
        if written:
            raise KeyboardInterrupt
        written.append(tar)
        original(location, tar, rows, config)

    original = module._write
    monkeypatch.setattr(module, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        transcode(str(labeled[0]), dest, "fast")
    assert not (dest / MANIFEST).exists()
    monkeypatch.undo()
    (dest / "shard-000001.tar.node.77.5.tmp").write_bytes(b"half")
    kept = stamps(dest)["shard-000000.tar"]
    assert transcode(str(labeled[0]), dest, "fast", workers=workers).written == 2
    assert stamps(dest)["shard-000000.tar"] == kept
    assert folder_bytes(dest) == folder_bytes(whole)
    assert transcode(str(labeled[0]), dest, "fast").written == 0
    os.truncate(dest / "shard-000001.tar", 4096)
    assert transcode(str(labeled[0]), dest, "fast").written == 1
    assert folder_bytes(dest) == folder_bytes(whole)


def test_a_url_is_read_as_a_folder_is(labeled, tmp_path):
    transcode(str(labeled[0]), tmp_path / "folder", "fast")
    with RangeServer(labeled[0]) as server:
        transcode(server.url, tmp_path / "url", "fast")
    assert folder_bytes(tmp_path / "folder") == folder_bytes(tmp_path / "url")


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_no_manifest_is_written_unless_every_member_is_compared(labeled, tmp_path, capfd):
    source = Path(shutil.copytree(labeled[0], tmp_path / "source"))
    row = ShardReader(source).table[0]
    _flip(source / "shard-000000.tar", int(row["offset"]) + 100)
    code, text = _run(capfd, source, tmp_path / "a", "--codec", "fast", "--workers", 1)
    assert code == 2 and "fails its checksum: damaged" in text
    _flip(source / "shard-000000.tar", int(row["offset"]) + 100)
    transform = (source / "shard-000000.tar").read_bytes().index(b"366015.0")  # of a description, without a checksum
    _flip(source / "shard-000000.tar", transform)
    code, text = _run(capfd, source, tmp_path / "a", "--codec", "fast", "--workers", 1)
    assert code == 2 and "shard-000000.tar: its SHA-256 differs" in text
    assert not (tmp_path / "a" / MANIFEST).exists()


def test_a_codec_that_changes_values_is_found_by_the_comparison(labeled, tmp_path, monkeypatch):
    from shards.format.codec import RawTile

    encode = RawTile.encode
    monkeypatch.setattr(RawTile, "encode", lambda self, tile: encode(self, tile ^ (tile == 0)))
    with pytest.raises(ShardError, match=r"shard-000000\.tar: tile '.*': band 1, row 0, column 1: 1 instead of 0"):
        transcode(str(labeled[0]), tmp_path / "new", "raw")
    assert not (tmp_path / "new" / MANIFEST).exists()


def test_manifests_without_an_origin_are_as_before(labeled):
    text = (labeled[0] / MANIFEST).read_text()
    assert "made_from" not in text
    manifest = read_manifest(labeled[0])
    assert to_json(manifest) == text and manifest.sealed() == manifest
    assert isinstance(manifest, Manifest)


def test_misuse_is_one_line(labeled, bounded, tmp_path, capfd):
    source, other = labeled[0], tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    unfinished = Path(shutil.copytree(source, tmp_path / "unfinished"))
    (unfinished / MANIFEST).unlink()
    begun = tmp_path / "begun"
    transcode(str(source), begun, "raw")
    for arguments, says in (
        ([source, source, "--codec", "raw"], "SRC and DEST are the same folder"),
        ([source, tmp_path / "new", "--codec", "compact"], "has the codec"),
        ([source, tmp_path / "new"], "give another one, or --tiles-per-shard"),
        ([source, tmp_path / "new", "--codec", "nonesuch"], "--codec nonesuch: unknown codec"),
        ([source, "s3://bucket/new", "--codec", "raw"], "a URL, but shards are written into a folder"),
        ([source, other, "--codec", "raw"], "not empty and not written by transcode"),
        ([unfinished, tmp_path / "new", "--codec", "raw"], "not a finished shard folder"),
        ([source, begun, "--codec", "fast"], "was transcoded with other options (codec:"),
        ([bounded, begun, "--codec", "raw"], "was made from another dataset"),
    ):
        code, text = _run(capfd, *arguments)
        assert code == 2 and says in text and len(text.splitlines()) == 1, text
    assert not (tmp_path / "new").exists()
    assert not Lock(begun / module.LOCK).path.exists()


def test_a_folder_below_the_source_of_pack_is_no_source(labeled, tmp_path):
    values = write_archive(tmp_path / "source")
    transcode(str(labeled[0]), tmp_path / "source/shards", "raw")
    assert pack(tmp_path / "source", tmp_path / "packed", PackConfig()).manifest.tiles == len(values)
