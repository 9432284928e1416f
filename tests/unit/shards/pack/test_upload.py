"""Datasets copied to an object store, which fsspec keeps in memory here; with a real server, see
tests/distributed/test_object_store.py."""

import fsspec
import pytest
from support.tiles import folder_bytes, write_archive

from shards.__main__ import main
from shards.errors import ShardError
from shards.format.manifest import MANIFEST
from shards.pack.build import PackConfig, pack
from shards.pack.upload import upload
from shards.read.reader import open_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A packed dataset of four shards."""
    folder = tmp_path_factory.mktemp("upload")
    write_archive(folder / "tiles")
    pack(folder / "tiles", folder / "shards", PackConfig(tiles_per_shard=2))
    return folder / "shards"


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/bucket", recursive=True)


def stored(memory) -> dict[str, bytes]:
    return {path.rsplit("/", 1)[1]: memory.cat_file(path) for path in memory.ls("/bucket/set", detail=False)}


def test_the_copy_has_the_same_bytes_and_a_second_call_writes_nothing(folder, memory, capsys):
    assert main(["upload", str(folder), "memory://bucket/set"]) == 0
    assert "12 files" in capsys.readouterr().out
    copy, local = stored(memory), folder_bytes(folder)
    assert len(copy) == 12 and all(local[name] == data for name, data in copy.items())
    assert len(open_dataset("memory://bucket/set")) == 10
    assert upload(folder, "memory://bucket/set").written == 0


def test_wrong_bytes_of_the_same_size_are_written_again(folder, memory):
    upload(folder, "memory://bucket/set")
    name = sorted(folder.glob("*.tar"))[1].name
    memory.pipe_file(f"/bucket/set/{name}", bytes((folder / name).stat().st_size))
    assert upload(folder, "memory://bucket/set").written == 1
    assert stored(memory)[name] == (folder / name).read_bytes()


def test_the_manifest_is_written_last(folder, memory, monkeypatch):
    monkeypatch.setattr(type(memory), "put_file", _failing(type(memory).put_file, after=5))
    with pytest.raises(ShardError, match=r"can't be written: PermissionError: denied; check the URL and the cred"):
        upload(folder, "memory://bucket/set", workers=1)
    monkeypatch.undo()
    assert MANIFEST not in stored(memory) and len(stored(memory)) == 5
    assert upload(folder, "memory://bucket/set").written == 7


def _failing(put_file, after):
    calls = iter(range(after))

    def put(*arguments, **options):
        if next(calls, None) is None:
            raise PermissionError("denied")
        return put_file(*arguments, **options)

    return put


def test_tiles_that_were_appended_go_to_the_same_place_and_others_do_not(tmp_path, memory):
    write_archive(tmp_path / "tiles", scenes={"0000017": ("00003", "05120")})
    pack(tmp_path / "tiles", tmp_path / "shards", PackConfig(tiles_per_shard=1))
    upload(tmp_path / "shards", "memory://bucket/set")
    write_archive(tmp_path / "tiles", scenes={"0000018": ("00003",)})
    pack(tmp_path / "tiles", tmp_path / "shards", PackConfig(tiles_per_shard=1), append=True)
    upload(tmp_path / "shards", "memory://bucket/set")
    assert len(open_dataset("memory://bucket/set")) == 3
    write_archive(tmp_path / "others", scenes={"0000019": ("00003",)})
    pack(tmp_path / "others", tmp_path / "other", PackConfig(tiles_per_shard=1))
    with pytest.raises(ShardError, match="memory://bucket/set: another dataset is there; choose another URL"):
        upload(tmp_path / "other", "memory://bucket/set")


def test_a_damaged_shard_is_not_passed_on_as_whole(tmp_path, memory):
    write_archive(tmp_path / "tiles", scenes={"0000017": ("00003",)})
    pack(tmp_path / "tiles", tmp_path / "shards", PackConfig())
    tar = next((tmp_path / "shards").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match=rf"{tar} is damaged, or the store keeps other bytes; run `python -m shards v"):
        upload(tmp_path / "shards", "memory://bucket/set")
    assert MANIFEST not in stored(memory)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["upload", "shards", "bucket/set"],
            "bucket/set: not the URL of an object store; give one as s3://bucket/name",
        ),
        (["upload", "shards", "https://127.0.0.1:9/set"], "https://127.0.0.1:9/set: not the URL of an object store"),
        (["pack", "tiles", "s3://bucket/set"], "s3:/bucket/set: a URL, but shards are written into a folder"),
    ],
)
def test_misuse_is_one_line(capsys, words, line):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
