"""A copy of shards on the node's own disk, fetched once per node while training already reads.

The processes of a node share a folder. Each has one thread that goes through the names it was told and
fetches those that are neither there nor being fetched by another process, which a lock per file tells
(shards/files/lock.py). A copy takes its name only when its SHA-256 has been checked and its bytes are on disk, so
what has a file's name and size is whole, wherever a process was killed. Readers never wait for a copy: what
is not there is read from the source. A disk that is full or broken makes reading slower, never fail.
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
from shards.errors import ShardError, UnreachableError
from shards.files.atomic import TEMPORARY, atomic_open
from shards.files.lock import Lock
from shards.files.storage import LocalStorage, Storage

logger = get_logger(__name__)

CHUNK = 8 << 20  # bytes fetched at a time, and in memory
LOCK = ".lock"
POLL_S = 1.0  # between two looks at a file that another process is fetching
LOOK_S = 5.0  # between two looks at what others have evicted; how exactly they know what was read last


@dataclass(frozen=True)
class StagedFile:
    """What a whole copy of a file is: ``size`` in bytes, ``sha256`` in hex."""

    name: str
    size: int
    sha256: str


class _GivenUp(Exception):
    """A copy that is not to be made: there is no room, or the storage was closed."""


class _WrongBytes(Exception):
    """A copy with another SHA-256 than it should have."""


class StagedStorage:
    """A storage that reads from copies on the node where they are, and through from the source where not.

    Args:
        source: where the files are; closed together with this.
        folder: for the copies, on a disk of this node, of this dataset alone; made where missing.
        files: that may be staged; all others are read through.
        quota_bytes: that the folder may hold, counted over all processes of the node; None for the whole disk.

    Attributes:
        staged: files that this process has fetched.
        read_through: reads that went to the source.
        evicted: copies that this process has removed to make room.
        downloaded_bytes: that this process has fetched, failed attempts included.

    A file that the source holds damaged is named in a warning and read through: most of its tiles may be
    good, and their own checksums tell which.
    """

    def __init__(
        self, source: Storage, folder: Path, files: Sequence[StagedFile], quota_bytes: int | None = None
    ) -> None:
        self.url, self.folder, self.quota_bytes = source.url, folder, quota_bytes
        self.staged = self.read_through = self.evicted = self.downloaded_bytes = 0
        self._source, self._local = source, LocalStorage(folder, patience_s=0)  # the source is at hand
        self._files = {file.name: file for file in files}
        self._here: dict[str, int] = {}  # inodes of the copies known to be whole
        self._used: dict[str, int] = {}  # time_ns of the last read since the last look
        self._damaged: set[str] = set()  # files of the source that are not worth another download
        self._wanted: frozenset[str] = frozenset()
        self._lock, self._next_look = threading.Lock(), 0.0
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.is_symlink():  # planted where all users may write: the files there are not ours to remove
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
        if self._is_here(name):
            try:
                self._local.read_into(name, offset, buffer)
                self._used[name] = time.time_ns()
                return
            except ShardError:  # evicted before it was opened, cut short, or the disk fails
                self.discard(name)
        self._source.read_into(name, offset, buffer)
        with self._lock:
            self.read_through += 1

    def size(self, name: str) -> int:
        return self._files[name].size if self._is_here(name) else self._source.size(name)

    def prefetch(self, names: Sequence[str]) -> None:
        """Fetch files in this order in the background, after those asked for before.

        Where the quota is used up, copies that this call doesn't name make room, least recently read first.
        So a dataset above the quota that is named at once keeps what fits and is read through for the rest,
        epoch after epoch; parts of an epoch that are named in turn replace each other.
        """
        self._wanted = frozenset(names)
        self._ask_for(names)

    def discard(self, name: str) -> None:
        """Remove a copy whose bytes turned out wrong and fetch it again; reads go to the source meanwhile."""
        with self._lock:
            inode = self._here.pop(name, None)
            try:
                if inode is None or (self.folder / name).stat().st_ino != inode:
                    return  # evicted, or replaced by another process that found it wrong
                (self.folder / name).unlink()
            except OSError:
                return
            finally:  # after the removal: nobody can open the old one any more
                self._local.close()
        self._ask_for([name])

    def close(self) -> None:
        """Stop fetching at the next chunk, with nothing unfinished left."""
        self._stop.set()
        self._queue.put("")
        self._source.close()
        if self._worker:
            self._worker.join()
        self._local.close()

    def _is_here(self, name: str) -> bool:
        """Whether a whole copy is in the folder; one of a wrong size is discarded."""
        if time.monotonic() >= self._next_look:
            self._look()
        if name not in self._here and name in self._files:
            with suppress(OSError):
                status = os.stat(self.folder / name)
                self._here[name] = status.st_ino
                if status.st_size != self._files[name].size:
                    self.discard(name)
        return name in self._here

    def _look(self) -> None:
        """Tell other processes what was read, by its time of change, and close what they have evicted."""
        with self._lock:
            self._next_look = time.monotonic() + LOOK_S
            used, self._used = self._used, {}
        evicted = False
        for name, inode in list(self._here.items()):
            try:
                if name in used:
                    os.utime(self.folder / name, ns=(used[name], used[name]), follow_symlinks=False)
                gone = os.stat(self.folder / name).st_ino != inode
            except OSError:
                gone = True
            if gone:
                self._here.pop(name, None)
                evicted = True
        if evicted:  # an open file would hold its disk space
            self._local.close()

    def _clean(self) -> None:
        """Remove what killed processes have left."""
        left = [entry.name for entry in os.scandir(self.folder) if entry.name.endswith((LOCK, TEMPORARY))]
        for name in self._files:
            lock = Lock(self.folder / (name + LOCK))
            if any(entry.startswith(name + ".") for entry in left) and lock.acquire():
                self._remove_temporaries(name)
                lock.release()

    def _remove_temporaries(self, name: str) -> None:
        """Of a file whose lock this process holds: nobody is writing them any more."""
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
        busy: list[str] = []  # being fetched by other processes, which may die over it
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
            except (FileNotFoundError, UnreachableError):
                busy.append(name)  # another process took this one for dead and swept its file; or the source is away
            except ShardError as error:  # of the source: the file is read through
                if not self._stop.is_set():
                    logger.warning(f"not staged: {error}")
            except OSError as error:
                self._give_up(error)
                return

    def _give_up(self, error: OSError) -> None:
        self._stop.set()
        what = "nothing more is staged, the rest is read from"
        logger.warning(f"{self.folder}: {error.strerror}: {what} {self.url}")

    def _stage(self, file: StagedFile) -> bool:
        """Fetch a file unless it is there; False where another process is at it."""
        lock = Lock(self.folder / (file.name + LOCK))
        if file.name in self._damaged or self._is_here(file.name):
            return True
        if not lock.acquire():
            return False
        try:
            if self._is_here(file.name):  # fetched by another between the two looks
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
            wrong = "twice other bytes than were packed (SHA-256); copy or pack it again"
            raise ShardError(f"{self.url}/{file.name}: {wrong}")
        finally:
            lock.release()

    def _reserve(self, copy: IO[bytes], size: int) -> None:
        """Take the disk space of a file at once, so that all processes count it; raises _GivenUp for lack of quota."""
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
                if entry.name in self._files and entry.name not in self._wanted:
                    copies.append((status.st_mtime_ns, status.st_size, entry.name))
        excess = total + size - quota
        if excess > sum(freed for _, freed, _ in copies):
            raise _GivenUp
        for _, freed, name in sorted(copies):
            if excess <= 0:
                break
            (self.folder / name).unlink(missing_ok=True)  # whoever is reading it has it open
            self._here.pop(name, None)
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
