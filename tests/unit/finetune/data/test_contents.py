"""Hashes of images: of what they hold, kept only for as long as nothing can have changed."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import contents
from finetune.data.contents import ContentCache, identify_images, stamp
from finetune.data.datasets import LabeledSplit
from finetune.data.hashes import array_hash
from finetune.data.items import Item
from finetune.tasks import get_task

TASK = get_task("sample_materials")
SHAPES = st.lists(st.integers(0, 3), min_size=1, max_size=3)


def _npy(path: Path) -> np.ndarray:
    return np.load(path)


def _folder(path: Path) -> Path:
    path.mkdir()
    for number in range(3):
        file = path / f"tile-{number}.npy"
        np.save(file, np.full((2, 8, 8), number, np.int16))
        os.utime(file, (time.time() - 1000,) * 2)
    return path


def _split(folder: Path, reads: list[Path] | None = None) -> LabeledSplit:
    def item(file: Path) -> Item:
        def image() -> np.ndarray:
            if reads is not None:
                reads.append(file)
            return _npy(file)

        return Item(file.name, "", "", "", image, lambda: np.ones((8, 8), np.int64), file=file)

    return LabeledSplit([item(file) for file in sorted(folder.glob("*.npy"))], TASK, 8, 1, keep=False, quiet=True)


def _hash(folder: Path, cache: Path, reads: list[Path] | None = None) -> str:
    split = _split(folder, reads)
    identify_images({"train": split}, cache, lambda: None)
    return split.images_hash


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as at rest at once: the time of status change can't be set back."""
    monkeypatch.setattr(contents, "AT_REST", -1.0)


@given(SHAPES, st.sampled_from(["<i2", "<f4", "|u1"]), st.integers(0, 3))
def test_arrays_of_other_shape_type_or_values_have_other_hashes(shape, dtype, value):
    array = np.full(shape, value, dtype)
    assert array_hash(array) == array_hash(np.asfortranarray(array.copy()))
    assert array_hash(array) != array_hash(array[None])
    assert array_hash(array) != array_hash(array.astype("<f8"))
    if array.size:
        assert array_hash(array) != array_hash(array + np.array(1, dtype))


def test_touched_copied_and_moved_images_are_the_same_and_changed_ones_are_not(tmp_path, at_rest):
    folder, cache = _folder(tmp_path / "one"), tmp_path / "contents.json"
    first = _hash(folder, cache)
    os.utime(folder / "tile-1.npy")
    assert _hash(folder, cache) == first
    moved = folder.rename(tmp_path / "two")
    assert _hash(moved, cache) == first
    np.save(moved / "tile-1.npy", np.full((2, 8, 8), 7, np.int16))
    assert _hash(moved, cache) != first


def test_what_has_not_changed_is_not_read_again(tmp_path, at_rest):
    folder, cache, reads = _folder(tmp_path / "one"), tmp_path / "contents.json", []
    first = _hash(folder, cache, reads)
    assert len(reads) == 3
    assert _hash(folder, cache, reads) == first
    assert len(reads) == 3
    (folder / "tile-2.npy.aux.xml").write_text("<PAMDataset/>")  # is read together with its image
    assert _hash(folder, cache, reads) == first
    assert [one.name for one in reads[3:]] == ["tile-2.npy"]


def test_the_same_size_and_time_do_not_hide_other_contents(tmp_path, at_rest):
    folder, cache = _folder(tmp_path / "one"), tmp_path / "contents.json"
    first, file = _hash(folder, cache), folder / "tile-0.npy"
    times = os.stat(file)
    with file.open("r+b") as rewritten:  # in place: size and inode stay
        rewritten.seek(-2, os.SEEK_END)
        rewritten.write(b"\x05\x05")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert _hash(folder, cache) != first


def test_files_that_changed_a_moment_ago_are_not_trusted(tmp_path, monkeypatch):
    """Written twice within a tick of the file system's clock, a file has the same times."""
    folder, path = _folder(tmp_path / "one"), tmp_path / "contents.json"
    item = _split(folder).items[0]
    cache = ContentCache(path)
    cache.add(item, stamp(item), "hash", time.time())
    assert cache.find(item) is None
    cache.add(item, stamp(item), "hash", time.time() + 10)
    assert cache.find(item) == "hash"
    cache.add(item, [["tile-0.npy", 1, 1, 1, 1]], "of what was there before", time.time() + 10)
    assert cache.find(item) == "hash"


def test_images_of_shards_are_known_by_the_manifests_hash_and_their_values(tmp_path):
    """Labels that are packed anew change the manifest, but no image."""
    cache, reads = tmp_path / "contents.json", []

    def hash_of(identity: str) -> str:
        def image() -> np.ndarray:
            reads.append(identity)
            return np.zeros((2, 8, 8), np.int16)

        items = [Item("key", "", "", identity, image, lambda: np.ones((8, 8), np.int64))]
        split = LabeledSplit(items, TASK, 8, 1, keep=False, quiet=True)
        identify_images({"train": split}, cache, lambda: None)
        return split.images_hash

    assert hash_of("one") == hash_of("one") == hash_of("two")
    assert reads == ["one", "two"]


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"reader": "another", "images": {}}', b'{"images": 3}', b"\xff"])
def test_a_damaged_cache_counts_as_empty(tmp_path, at_rest, damage):
    folder, cache = _folder(tmp_path / "one"), tmp_path / "contents.json"
    first = _hash(folder, cache)
    cache.write_bytes(damage)
    assert _hash(folder, cache) == first


def test_entries_of_another_readers_code_do_not_count(tmp_path, at_rest, monkeypatch):
    folder, cache, reads = _folder(tmp_path / "one"), tmp_path / "contents.json", []
    _hash(folder, cache)
    monkeypatch.setattr(contents, "code_version", lambda stage: {"shards/sources/raster.py": "changed"})
    _hash(folder, cache, reads)
    assert len(reads) == 3
