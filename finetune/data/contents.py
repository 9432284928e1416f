"""Hashes of the contents of images, kept between runs as long as their files are unchanged.

::

    RUN/contents.json    by file: sizes and times of all that is read with it, and the hash of the decoded image;
                         of shards, by the manifest's hash

A hash is of the decoded image, so a copied, moved or touched file is the same image. An entry is kept only where its
files had been at rest for a while: one that is written twice within a tick of the file system's clock may not look
changed (as in git's index).
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
"""Seconds since the last change from which a file's times are trusted; file systems' clocks tick in up to 2."""

BATCH = 64
"""Images that are hashed between two heartbeats."""

Stamp = list[list[Any]]
"""Name, size, times of modification and of status change in ns, and inode of every file that is read for an image."""


class ContentCache:
    """Hashes of images by path, in a JSON file; a damaged one, or one of another reader's code, counts as empty."""

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
        """Return the hash of an image whose files, or whose shards, are unchanged; None otherwise."""
        entry = self._entries.get(_name(item))
        return entry[1] if entry and entry[0] == stamp(item) else None

    def add(self, item: Item, before: Stamp, found: str, started: float) -> None:
        """Keep the hash of an image.

        Args:
            before: its stamp before it was read.
            started: when that was, in seconds since the epoch.
        """
        if stamp(item) == before and _changed(before) < started - AT_REST:
            self._entries[_name(item)] = [before, found]

    def save(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps({"reader": self._reader, "images": self._entries}))


def stamp(item: Item) -> Stamp:
    """Return the stamp of an image's file and of those that are read with it (``x.hdr`` and ``x.tif.aux.xml`` of
    ``x.tif``); empty for images with an identity."""
    found: Stamp = []
    if item.identity or item.file is None:
        return found
    folder = item.file.parent
    for name in _beside(folder, folder.stat().st_mtime_ns).get(item.file.stem, ()):
        try:
            now = os.stat(folder / name)
        except OSError:
            continue  # removed meanwhile
        found.append([name, now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino])
    return found


@lru_cache(maxsize=64)
def _beside(folder: Path, _: int) -> dict[str, list[str]]:
    """Return the names in a folder by their stem: all that comes before any of their dots."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        for end in [place for place, letter in enumerate(name) if letter == "." and place] + [len(name)]:
            found.setdefault(name[:end], []).append(name)
    return found


def _name(item: Item) -> str:
    """Return the key that an image is kept under."""
    return f"{item.identity}/{item.name}" if item.identity else str(item.file.absolute() if item.file else "")


def _changed(found: Stamp) -> float:
    """Return when the newest of the files changed, in seconds since the epoch; 0 without files."""
    return max((max(one[2], one[3]) / 1e9 for one in found), default=0.0)


def identify_images(splits: dict[str, LabeledSplit], path: Path, heartbeat: Callable[[], None]) -> None:
    """Give every split the hashes of its images; ranks share the images that are not known from earlier.

    Args:
        path: of the cache.
        heartbeat: called now and then; see Watchdog.begin.

    Raises:
        TileError, SourceError: an image can't be read; on every rank.
    """
    cache = ContentCache(path) if distributed.is_main() else None
    known: dict[str, list[str | None]] = distributed.broadcast_object(
        {name: [cache.find(item) for item in split.items] for name, split in splits.items()} if cache else None
    )
    open_ = [(name, place) for name, found in known.items() for place, one in enumerate(found) if one is None]
    mine = open_[distributed.rank() :: distributed.world_size()]
    error: ForgeError | None = None
    hashed: list[tuple[str, int, str, Stamp, float]] = []
    try:
        hashed = _hash(splits, mine, heartbeat)
    except ForgeError as raised:
        error = raised
    distributed.store_barrier(heartbeat)
    distributed.raise_on_all_ranks(lambda: _raise(error))
    for name, place, found, before, started in (one for part in distributed.gather_objects(hashed) for one in part):
        known[name][place] = found
        item = splits[name].items[place]
        if cache is not None and (item.identity or item.file):
            cache.add(item, before, found, started)
    if cache is not None and open_:
        cache.save()
    for name, split in splits.items():
        split.image_hashes = [one or "" for one in known[name]]


def _raise(error: ForgeError | None) -> None:
    if error is not None:
        raise error


def _hash(
    splits: dict[str, LabeledSplit], chosen: list[tuple[str, int]], heartbeat: Callable[[], None]
) -> list[tuple[str, int, str, Stamp, float]]:
    found: list[tuple[str, int, str, Stamp, float]] = []
    with progress("hash images", len(chosen), show=distributed.is_main()) as bar:
        for name, places in _batches(chosen):
            started, before = time.time(), [stamp(splits[name].items[place]) for place in places]
            hashes = splits[name].hash_images(places)
            found += [(name, *one, started) for one in zip(places, hashes, before, strict=True)]
            bar.update(len(places))
            heartbeat()
    return found


def _batches(chosen: list[tuple[str, int]]) -> Iterable[tuple[str, list[int]]]:
    for split in dict.fromkeys(name for name, _ in chosen):
        places = [place for name, place in chosen if name == split]
        for begin in range(0, len(places), BATCH):
            yield split, places[begin : begin + BATCH]
