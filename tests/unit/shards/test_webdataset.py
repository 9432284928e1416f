"""A stock WebDataset stream of packed and of indexed tars: decoded samples, shuffled, without unpickling anything."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.tiles import spectra, write_archive, write_tile

from shards.__main__ import main
from shards.errors import ShardError
from shards.pack.build import PackConfig, pack
from shards.webdataset import pipeline


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("stock")
    written = write_archive(folder / "tiles")
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=4))
    return folder / "shards", written


@pytest.mark.parametrize("shuffle", [0, 3])
def test_a_folder_streams_its_samples_decoded(shards, shuffle):
    folder, written = shards
    samples = list(pipeline(folder, shuffle=shuffle))
    assert sorted(sample["__key__"] for sample in samples) == sorted(written)
    for sample in samples:
        np.testing.assert_array_equal(sample["tile"], written[sample["__key__"]])
        assert sample["json"]["key"] == sample["__key__"]
        assert sample.keys() == {"__key__", "tile", "json"}


def test_the_seed_and_the_epoch_decide_the_order(shards):
    def order(stream):
        return [sample["__key__"] for sample in stream]

    stream = pipeline(shards[0], shuffle=4, seed=1)
    first, second = order(stream), order(stream)
    assert first == order(pipeline(shards[0], shuffle=4, seed=1))
    assert first != second and sorted(first) == sorted(second)
    assert first != order(pipeline(shards[0], shuffle=4, seed=2))


def test_some_tars_are_streamed_by_the_manifest_beside_them(shards):
    folder, written = shards
    some = list(pipeline([folder / "shard-000000.tar"], shuffle=0))
    assert 0 < len(some) < len(written)
    assert [sample["__key__"] for sample in pipeline(str(folder / "shard-000000.tar"), shuffle=0)] == [
        sample["__key__"] for sample in some
    ]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_tars_of_others_stream_like_our_own(tmp_path, kind):
    tile, mask = spectra(1, 8), np.arange(64, dtype=np.uint8).reshape(8, 8)
    path = write_tile(tmp_path / "tile.tif", tile)
    stored = _npy(np.ascontiguousarray(tile.transpose(1, 2, 0))) if kind == "npy" else path.read_bytes()
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as archive:
        members = {kind: stored, "json": b'{"place": 7}', "mask.npy": _npy(mask), "pyd": b"a pickle"}
        for name, data in members.items():
            _add(archive, f"one.{name}", data)
    assert main(["index", str(tmp_path / "tars"), "--workers", "1"]) == 0
    (sample,) = pipeline(tmp_path / "tars")
    np.testing.assert_array_equal(sample["tile"], tile)
    np.testing.assert_array_equal(sample["mask"], mask)
    assert sample["json"] == {"place": 7}
    assert "pyd" not in sample  # WebDataset's own decoder would unpickle it


def test_what_can_not_be_streamed_is_named(shards, tmp_path):
    with pytest.raises(ShardError, match=r"manifest\.json"):
        pipeline(tmp_path)
    folder = tmp_path / "damaged"
    folder.mkdir()
    manifest = (shards[0] / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest)
    names = [entry["name"] for entry in json.loads(manifest)["shards"]]
    for name in names:
        with tarfile.open(folder / name, "w") as archive:
            _add(archive, "one.tile", b"no tile at all")
    with pytest.raises(ShardError, match="sample 'one': does not decode"):
        list(pipeline(folder))
