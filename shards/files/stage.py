"""Copies of shards on the node's local disk, fetched once per node while training is already reading.

The processes of a node share a folder. Each has one thread that works through its queue of names and fetches the files
that are neither present nor being fetched by another process, using one lock per file (shards/files/lock.py). A copy
gets its final name only after its SHA-256 has been checked and its bytes are on disk, so a file with the right name
and size is complete even if processes were killed. Readers never wait for a copy: missing files are read from the
source. A full or broken disk makes reading slower but never makes it fail.
"""

import errno
import hashlib
import os
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.console import get_logger
from shards.errors import MissingShardError, ShardError, UnreachableError
from shards.files.atomic import TEMPORARY, atomic_open
from shards.files.lock import Lock
from shards.files.processes import host_name
from shards.files.storage import LocalStorage, Storage
from shards.files.system_errors import error_text, remedy

logger = get_logger(__name__)

CHUNK = 8 << 20  # bytes fetched and held in memory at a time
LOCK = ".lock"
POLL_S = 1.0  # between checks of a file that another process is fetching
LOOK_S = 5.0  # between checks for copies that others evicted; also the resolution of the shared last-read times


@dataclass(frozen=True)
class StagedFile:
    """A file to stage: ``size`` in bytes, ``sha256`` in hex."""

    name: str
    size: int
    sha256: str


class _GivenUp(Exception):
    """No copy is made because there is no room or the storage was closed."""


class _WrongBytes(Exception):
    """The SHA-256 of a copy is wrong."""


class StagedStorage:
    """A storage that reads from node-local copies if they exist and from the source otherwise.

    Args:
        source: storage of the original files; closed together with this one.
        folder: folder for the copies of this dataset only, on a local disk; created if missing.
        files: files that can be staged; all others are read from the source.
        quota_bytes: limit for the folder, over all processes of the node; None for the whole disk.

    Attributes:
        staged: number of files fetched by this process.
        read_through: number of reads from the source.
        evicted: number of copies that this process removed to make room.
        downloaded_bytes: bytes fetched by this process, including failed attempts.

    If a file is damaged in the source, a warning names it and it is read from there: most of its tiles may be intact,
    and their checksums show which.
    """

    def __init__(
        self, source: Storage, folder: Path, files: Sequence[StagedFile], quota_bytes: int | None = None
    ) -> None:
        self.url, self.folder, self.quota_bytes = source.url, folder, quota_bytes
        self.staged = self.read_through = self.evicted = self.downloaded_bytes = 0
        self._source, self._local = source, LocalStorage(folder, patience_s=0)  # no retries: fall back to the source
        self._files = {file.name: file for file in files}
        self._copied: dict[str, int] = {}  # inodes of the copies known to be complete
        self._used: dict[str, int] = {}  # time_ns of the last read, for reads since the last check
        self._damaged: set[str] = set()  # files that are damaged in the source
        self._needed: frozenset[str] = frozenset()
        self._lock, self._next_look = threading.Lock(), 0.0
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.is_symlink():  # may be planted in a world-writable folder; its files are not ours to remove
                self._files = {}
                raise OSError(errno.ELOOP, "a link where a folder for copies was expected: name another data.stage")
            self._clean()
        except OSError as error:
            self._give_up(error)

    def read(self, name: str) -> bytes:
        data = bytearray(self.size(name))
        self.read_into(name, 0, memoryview(data))
        return bytes(data)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        if self._is_copied(name):
            try:
                self._local.read_into(name, offset, buffer)
                self._used[name] = time.time_ns()
                return
            except ShardError:  # evicted before it was opened, truncated, or the disk failed
                self.discard(name)
        self._source.read_into(name, offset, buffer)
        with self._lock:
            self.read_through += 1

    def size(self, name: str) -> int:
        return self._files[name].size if self._is_copied(name) else self._source.size(name)

    def prefetch(self, names: Sequence[str]) -> None:
        """Fetch files in this order in the background, after those requested before.

        When the quota is used up, copies not named in this call are evicted, least recently read first. If a dataset
        above the quota is requested at once, the copies that fit stay, and the rest is read from the source in every
        epoch; if parts of an epoch are requested in turn, they replace each other.
        """
        self._needed = frozenset(names)
        self._ask_for(names)

    def discard(self, name: str) -> None:
        """Remove a copy with wrong bytes and fetch it again; until then reads go to the source."""
        with self._lock:
            inode = self._copied.pop(name, None)
            try:
                if inode is None or (self.folder / name).stat().st_ino != inode:
                    return  # evicted, or replaced by another process that found the error
                (self.folder / name).unlink()
            except OSError:
                return
            finally:  # after the removal, so that the old file can't be opened again
                self._local.close()
        self._ask_for([name])

    def close(self) -> None:
        """Stop fetching after the current chunk, and leave no unfinished files."""
        self._stop.set()
        self._queue.put("")
        self._source.close()
        if self._worker:
            self._worker.join()
        self._local.close()

    def _is_copied(self, name: str) -> bool:
        """Return whether a complete copy is in the folder; discard one of the wrong size."""
        if time.monotonic() >= self._next_look:
            self._look()
        if name not in self._copied and name in self._files:
            with suppress(OSError):
                status = os.stat(self.folder / name)
                self._copied[name] = status.st_ino
                if status.st_size != self._files[name].size:
                    self.discard(name)
        return name in self._copied

    def _look(self) -> None:
        """Publish the last-read times as modification times, and close copies that other processes evicted."""
        with self._lock:
            self._next_look = time.monotonic() + LOOK_S
            used, self._used = self._used, {}
        evicted = False
        for name, inode in list(self._copied.items()):
            try:
                if name in used:
                    os.utime(self.folder / name, ns=(used[name], used[name]), follow_symlinks=False)
                removed = os.stat(self.folder / name).st_ino != inode
            except OSError:
                removed = True
            if removed:
                self._copied.pop(name, None)
                evicted = True
        if evicted:  # open files would keep their disk space
            self._local.close()

    def _clean(self) -> None:
        """Remove leftovers of killed processes."""
        leftovers = [entry.name for entry in os.scandir(self.folder) if entry.name.endswith((LOCK, TEMPORARY))]
        for name in self._files:
            lock = Lock(self.folder / (name + LOCK))
            if any(entry.startswith(name + ".") for entry in leftovers) and lock.acquire():
                self._remove_temporaries(name)
                lock.release()

    def _remove_temporaries(self, name: str) -> None:
        """Remove the temporary files of a file; this process holds its lock, so no other process is writing them."""
        for entry in os.scandir(self.folder):
            if entry.name.startswith(name + ".") and entry.name.endswith(TEMPORARY):
                Path(entry).unlink(missing_ok=True)

    def _ask_for(self, names: Sequence[str]) -> None:
        with self._lock:
            for name in names:
                self._queue.put(name)
            if self._worker is None and not self._stop.is_set():
                self._worker = threading.Thread(target=self._work, name="shard-staging", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        busy: list[str] = []  # being fetched by other processes, which may die before they finish
        while True:
            try:
                name = self._queue.get(timeout=POLL_S if busy else None)
            except queue.Empty:
                while busy:
                    self._queue.put(busy.pop(0))
                continue
            if self._stop.is_set():
                return
            try:
                if name in self._files and not self._stage(self._files[name]):
                    busy.append(name)
            except _GivenUp:
                pass
            except FileNotFoundError:
                busy.append(name)  # another process swept its file
            except ShardError as error:  # an error of the source: the file is read from there
                if isinstance(error, UnreachableError) and not isinstance(error, MissingShardError):
                    busy.append(name)
                elif not self._stop.is_set():
                    logger.warning(f"not staged: {error}")
            except OSError as error:
                self._give_up(error)
                return

    def _give_up(self, error: OSError) -> None:
        self._stop.set()
        why = f"{error_text(error)} on {host_name()}: {remedy(error, self.folder)}"
        logger.warning(f"{self.folder}: {why}; staging stopped, the rest is read from {self.url}")

    def _stage(self, file: StagedFile) -> bool:
        """Fetch a file unless it is present; returns False if another process is fetching it."""
        lock = Lock(self.folder / (file.name + LOCK))
        if file.name in self._damaged or self._is_copied(file.name):
            return True
        self._restore_folder()
        if not lock.acquire():
            return False
        try:
            if self._is_copied(file.name):  # fetched by another process before the lock was acquired
                return True
            self._remove_temporaries(file.name)
            for _ in range(2):
                try:
                    with atomic_open(self.folder / file.name) as copy:
                        self._reserve(copy, file.size)
                        self._copy(file, copy)
                    self.staged += 1
                    return True
                except _WrongBytes:
                    continue
            self._damaged.add(file.name)
            wrong = "its SHA-256 differed twice from the packed one; copy or pack it again"
            raise ShardError(f"{self.url}/{file.name}: {wrong}")
        finally:
            lock.release()

    def _restore_folder(self) -> None:
        """Create the folder again if it was removed, but not its parent: the disk may no longer be mounted."""
        if self.folder.is_dir():
            return
        try:
            self.folder.mkdir()
        except FileExistsError:  # by another process
            return
        except OSError as error:
            self._give_up(error)
            raise _GivenUp from None
        logger.warning(f"{self.folder}: removed on {host_name()} while in use; the shards are copied there again")

    def _reserve(self, copy: IO[bytes], size: int) -> None:
        """Allocate the disk space of a file so that all processes count it; raises _GivenUp if the quota is used up."""
        lock = Lock(self.folder / ("quota" + LOCK))
        while not lock.acquire():
            if self._stop.wait(0.02):
                raise _GivenUp
        try:
            if self.quota_bytes is not None:
                self._make_room(size, self.quota_bytes)
            if size:
                os.posix_fallocate(copy.fileno(), 0, size)
        finally:
            lock.release()

    def _make_room(self, size: int, quota: int) -> None:
        self._look()
        total, copies = 0, []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                status = entry.stat()
                total += 0 if LOCK in entry.name else status.st_size
                if entry.name in self._files and entry.name not in self._needed:
                    copies.append((status.st_mtime_ns, status.st_size, entry.name))
        excess = total + size - quota
        if excess > sum(freed for _, freed, _ in copies):
            raise _GivenUp
        for _, freed, name in sorted(copies):
            if excess <= 0:
                break
            (self.folder / name).unlink(missing_ok=True)  # current readers keep it open
            self._copied.pop(name, None)
            self.evicted += 1
            excess -= freed
        self._local.close()

    def _copy(self, file: StagedFile, copy: IO[bytes]) -> None:
        digest, chunk = hashlib.sha256(), memoryview(bytearray(min(CHUNK, file.size)))
        for begin in range(0, file.size, CHUNK):
            if self._stop.is_set():
                raise _GivenUp
            piece = chunk[: file.size - begin]
            self._source.read_into(file.name, begin, piece)
            self.downloaded_bytes += len(piece)
            digest.update(piece)
            copy.write(piece)
        if digest.hexdigest() != file.sha256:
            raise _WrongBytes
