"""Content hashes of images, cached between runs as long as the files are unchanged.

::

    RUN/contents.json    by file: sizes and times of the file and its sidecars, and the hash of the decoded image;
                         for shards: by the hash of the manifest

The decoded image is hashed, so a copied, moved or touched file counts as the same image. An entry is kept only if its
files had not changed for a while: a file that is written twice within a tick of the file system's clock may look
unchanged (as in git's index).
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.data.code_version import code_version
from finetune.data.datasets import LabeledSplit
from finetune.data.hashes import digest
from finetune.data.items import Item
from pretrain import distributed
from shards.errors import ForgeError
from shards.files.atomic import write_atomic
from shards.files.untrusted import read_json_value
from shards.progress import progress

AT_REST = 3.0
"""Seconds after the last change before a file's times are trusted; file system clocks tick every 2 s or faster."""

BATCH = 64
"""Number of images that are hashed between two heartbeats."""

Stamp = list[list[Any]]
"""Name, size, modification and status change times in ns, and inode of every file that is read for an image."""


class ContentCache:
    """Hashes of images by path, in a JSON file; a file that is damaged or from other reader code counts as empty."""

    def __init__(self, path: Path) -> None:
        self.path, self._reader = path, digest(code_version("reading"))
        self._entries: dict[str, list[Any]] = {}
        try:
            content = read_json_value(path.read_bytes())
            if content["reader"] == self._reader:
                self._entries = dict(content["images"])
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def find(self, item: Item) -> str | None:
        """Return the hash of an image if its files or shards are unchanged, else None."""
        entry = self._entries.get(_name(item))
        return entry[1] if entry and entry[0] == stamp(item) else None

    def add(self, item: Item, before: Stamp, image_hash: str, started: float) -> None:
        """Keep the hash of an image.

        Args:
            before: stamp of the image before it was read.
            started: time of that stamp, in seconds since the epoch.
        """
        if stamp(item) == before and _changed(before) < started - AT_REST:
            self._entries[_name(item)] = [before, image_hash]

    def save(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps({"reader": self._reader, "images": self._entries}))


def stamp(item: Item) -> Stamp:
    """Return the stamp of an image's file and its sidecars (``x.hdr`` and ``x.tif.aux.xml`` of ``x.tif``); empty for
    images with an identity."""
    files: Stamp = []
    if item.identity or item.file is None:
        return files
    folder = item.file.parent
    for name in _beside(folder, folder.stat().st_mtime_ns).get(item.file.stem, ()):
        try:
            now = os.stat(folder / name)
        except OSError:
            continue  # removed in the meantime
        files.append([name, now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino])
    return files


@lru_cache(maxsize=64)
def _beside(folder: Path, _: int) -> dict[str, list[str]]:
    """Return the names in a folder by their stem: the part before the first dot."""
    names_by_stem: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        for end in [index for index, letter in enumerate(name) if letter == "." and index] + [len(name)]:
            names_by_stem.setdefault(name[:end], []).append(name)
    return names_by_stem


def _name(item: Item) -> str:
    """Return the cache key of an image."""
    return f"{item.identity}/{item.name}" if item.identity else str(item.file.absolute() if item.file else "")


def _changed(files: Stamp) -> float:
    """Return the latest change time of the files, in seconds since the epoch; 0 without files."""
    return max((max(file[2], file[3]) / 1e9 for file in files), default=0.0)


def identify_images(splits: dict[str, LabeledSplit], path: Path, heartbeat: Callable[[], None]) -> None:
    """Set the image hashes of every split; ranks divide the images that are not in the cache.

    Args:
        path: path of the cache.
        heartbeat: called regularly; see Watchdog.begin.

    Raises:
        TileError, SourceError: an image can't be read; raised on every rank.
    """
    cache = ContentCache(path) if distributed.is_main() else None
    known: dict[str, list[str | None]] = distributed.broadcast_object(
        {name: [cache.find(item) for item in split.items] for name, split in splits.items()} if cache else None
    )
    open_ = [
        (name, index) for name, hashes in known.items() for index, image_hash in enumerate(hashes) if image_hash is None
    ]
    share = open_[distributed.rank() :: distributed.world_size()]
    error: ForgeError | None = None
    hashed: list[tuple[str, int, str, Stamp, float]] = []
    try:
        hashed = _hash(splits, share, heartbeat)
    except ForgeError as raised:
        error = raised
    distributed.store_barrier(heartbeat)
    distributed.raise_on_all_ranks(lambda: _raise(error))
    for name, index, image_hash, before, started in (
        entry for part in distributed.gather_objects(hashed) for entry in part
    ):
        known[name][index] = image_hash
        item = splits[name].items[index]
        if cache is not None and (item.identity or item.file):
            cache.add(item, before, image_hash, started)
    if cache is not None and open_:
        cache.save()
    for name, split in splits.items():
        split.image_hashes = [image_hash or "" for image_hash in known[name]]


def _raise(error: ForgeError | None) -> None:
    if error is not None:
        raise error


def _hash(
    splits: dict[str, LabeledSplit], chosen: list[tuple[str, int]], heartbeat: Callable[[], None]
) -> list[tuple[str, int, str, Stamp, float]]:
    hashed: list[tuple[str, int, str, Stamp, float]] = []
    with progress("hash images", len(chosen), show=distributed.is_main()) as bar:
        for name, indices in _batches(chosen):
            started, before = time.time(), [stamp(splits[name].items[index]) for index in indices]
            hashes = splits[name].hash_images(indices)
            hashed += [(name, *entry, started) for entry in zip(indices, hashes, before, strict=True)]
            bar.update(len(indices))
            heartbeat()
    return hashed


def _batches(chosen: list[tuple[str, int]]) -> Iterable[tuple[str, list[int]]]:
    for split in dict.fromkeys(name for name, _ in chosen):
        indices = [index for name, index in chosen if name == split]
        for begin in range(0, len(indices), BATCH):
            yield split, indices[begin : begin + BATCH]
