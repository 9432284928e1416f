"""`upload`: copy a finished folder of shards to an object store.

Every file is read back and hashed, since a store may confirm what it hasn't kept, and a checksum of an object's parts
is not that of its bytes. The manifest is written last, so a URL without one is unfinished. A file that is there already
is read instead of written.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from shards.errors import ShardError
from shards.files.storage import RemoteStorage
from shards.format.manifest import MANIFEST, Manifest, parse_json, read_manifest
from shards.pack.writer import index_path
from shards.progress import progress

CHUNK = 8 << 20
"""Bytes read back at a time."""


@dataclass(frozen=True)
class Uploaded:
    """What `upload` has done: ``written`` of ``files`` files by this call; ``url`` is without a password."""

    url: str
    files: int
    nbytes: int
    written: int


@dataclass(frozen=True)
class _File:
    """A file to copy, with the size in bytes and the SHA-256 that it must have."""

    path: Path
    size: int
    sha256: str


def upload(folder: Path, url: str, workers: int = 4) -> Uploaded:
    """Copy a dataset to a URL, or continue to.

    Args:
        folder: written by `pack` or `merge`.
        url: any that fsspec can write to.
        workers: files at a time.

    Raises:
        ShardError: if the dataset is unfinished or damaged, or if another one is at the URL.
        UnreachableError: if the store didn't respond for minutes, refused the credentials, or returns other bytes.
    """
    if "://" not in url or url.startswith(("http://", "https://")):
        raise ShardError(f"{url}: not the URL of an object store; give one as s3://bucket/name")
    manifest = read_manifest(folder)
    storage = RemoteStorage(url)
    try:
        _check_other(storage, manifest)
        files = list(_files(folder, manifest))
        with ThreadPoolExecutor(workers) as pool:
            written = sum(
                progress("upload", len(files), pool.map(lambda file: _copy(storage, file), files), unit="file")
            )
        last = _described(folder / MANIFEST)
        written += _copy(storage, last)
        return Uploaded(storage.url, len(files) + 1, sum(file.size for file in [*files, last]), written)
    finally:
        storage.close()


def _check_other(storage: RemoteStorage, manifest: Manifest) -> None:
    """Raise ShardError if another dataset is at the URL than this one, or this one before tiles were appended."""
    if not storage.has(MANIFEST):
        return
    other = parse_json(storage.read(MANIFEST), Manifest, f"{storage.url}/{MANIFEST}")
    if other.shards != manifest.shards[: len(other.shards)]:
        raise ShardError(f"{storage.url}: another dataset is there; choose another URL, or remove it first")


def _files(folder: Path, manifest: Manifest) -> Iterator[_File]:
    """Yield all files of a dataset but the manifest: shards with their indexes, table, and statistics."""
    for entry in manifest.shards:
        yield _File(folder / entry.name, entry.size, entry.sha256)
        yield _described(index_path(folder / entry.name), entry.index_sha256)
    yield _described(folder / manifest.table, manifest.table_sha256)
    for name in ("mu.npy", "sigma.npy"):
        yield _described(folder / name)


def _described(path: Path, sha256: str | None = None) -> _File:
    """Return a small file with its hash, by default that of its bytes."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ShardError(f"{path}: missing; copy or pack it again") from None
    return _File(path, len(data), sha256 or hashlib.sha256(data).hexdigest())


def _copy(storage: RemoteStorage, file: _File) -> bool:
    """Make a file at the URL equal to the local one; returns whether it was written."""
    if storage.has(file.path.name) and _is_same(storage, file):
        return False
    storage.write(file.path.name, file.path)
    if not _is_same(storage, file):
        raise ShardError(
            f"{storage.url}/{file.path.name}: what was written is not what the manifest names: {file.path} is damaged, "
            f"or the store keeps other bytes; run `python -m shards verify {file.path.parent}`"
        )
    return True


def _is_same(storage: RemoteStorage, file: _File) -> bool:
    """Read a file back and compare it."""
    if storage.size(file.path.name) != file.size:
        return False
    digest, chunk = hashlib.sha256(), memoryview(bytearray(min(CHUNK, file.size)))
    for begin in range(0, file.size, CHUNK):
        piece = chunk[: file.size - begin]
        storage.read_into(file.path.name, begin, piece)
        digest.update(piece)
    return digest.hexdigest() == file.sha256
