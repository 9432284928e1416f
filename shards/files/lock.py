"""Locks between processes and nodes that need only O_EXCL: Lustre is often mounted without flock.

A lock is a file that names its holder. The holder touches it periodically; if it stops doing so (killed, node lost),
another process takes the lock over. A holder that was only suspended notices this when it resumes, and does not touch
its successor's lock.
"""

import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from shards.console import get_logger
from shards.files.atomic import age, temporary_path
from shards.files.processes import ProcessId

logger = get_logger(__name__)

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A lock that was not touched for this long is free: twelve missed heartbeats."""


class Lock:
    """A lock file; it is also released when the object is garbage-collected.

    Args:
        path: path of the lock file in an existing folder.
        from_living: whether to take over from a silent holder whose process still exists (suspended, or stuck in a
            system call). This is safe if the lock only avoids duplicate work and results are written atomically.
    """

    def __init__(self, path: Path, from_living: bool = True) -> None:
        self.path, self.from_living = path, from_living
        self._text = ""
        self._lost = threading.Event()
        self._end: Callable[[], object] | None = None

    def acquire(self) -> bool:
        """Acquire the lock without blocking if it is free or its holder is gone; returns whether it was acquired.

        Raises:
            OSError: if the lock file can't be written.
        """
        for _ in range(2):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if not (self._is_abandoned(self.path) and _remove(self.path, self._is_abandoned)):
                    return False
                continue
            self._text = f"{ProcessId.own()} {uuid4().hex}\n"
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(self._text)
            except OSError:  # disk full: a lock file without a name has no holder
                self.path.unlink(missing_ok=True)
                raise
            released, self._lost = threading.Event(), threading.Event()
            what = (self.path, self._text, released, self._lost)
            threading.Thread(target=_beat, args=what, name="lock-heartbeat", daemon=True).start()
            self._end = weakref.finalize(self, _give_back, self.path, self._text, released)
            return True
        return False

    @property
    def is_lost(self) -> bool:
        """Whether another process had taken over the lock at the last heartbeat."""
        return self._lost.is_set()

    def is_held(self) -> bool:
        """Read the lock file and return whether it still names this holder."""
        if self._end is not None and not _is_of(self.path, self._text):
            self._lost.set()
        return self._end is not None and not self.is_lost

    def release(self) -> None:
        """Release the lock unless another process has taken it over."""
        if self._end is not None:
            self._end()
            self._end = None

    def _is_abandoned(self, path: Path) -> bool:
        """Return whether the holder is gone: dead on this host, or silent for ``STALE_S``."""
        try:
            holder, silent_for = _look(path)
        except OSError:
            return True  # released in the meantime
        state = "elsewhere" if holder is None else holder.state()  # None: the file is being written
        if state == "gone":
            return True
        if state != "elsewhere" and not self.from_living:
            return False
        return silent_for > STALE_S


@contextmanager
def held(path: Path, poll_s: float = 0.2) -> Iterator[None]:
    """Hold the lock during the block, first waiting until no live process holds it."""
    lock, begin, warned = Lock(path), time.monotonic(), False
    while not lock.acquire():
        if not warned and time.monotonic() - begin > 3:
            logger.warning(f"waiting for {holder(path) or 'another process'} to release {path}")
            warned = True
        time.sleep(poll_s)
    try:
        yield
    finally:
        lock.release()


def holder(path: Path) -> str:
    """Return the holder of a lock for messages, such as ``"node17 4711"``; empty if there is none."""
    try:
        return " ".join(path.read_text().split()[:2])
    except OSError:
        return ""


def silence(path: Path) -> float:
    """Return the seconds since a lock was touched; raises OSError if there is none."""
    return _look(path)[1]


def _look(path: Path) -> tuple[ProcessId | None, float]:
    """Return the holder (None while its file is being written) and the seconds since the last heartbeat."""
    with open(path) as file:  # on NFS, opening the file refreshes cached attributes
        text, touched = file.read(), os.fstat(file.fileno()).st_mtime
    try:
        return ProcessId.parse(text), age(path, touched)
    except ValueError:
        return None, age(path, touched)


def _is_of(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except FileNotFoundError:
        return False
    except OSError:  # the file system hangs or is gone: no evidence of another holder
        return True


def _beat(path: Path, text: str, released: threading.Event, lost: threading.Event) -> None:
    """Touch the lock until it is released or taken over."""
    while not released.wait(HEARTBEAT_S):
        if not _is_of(path, text):
            lost.set()
            return
        try:
            os.utime(path)
        except OSError:  # not supported by some FUSE file systems, or the file system is temporarily gone
            with suppress(OSError):
                path.write_text(text)


def _give_back(path: Path, text: str, released: threading.Event) -> None:
    released.set()
    if ProcessId.parse(text).pid == os.getpid() and _is_of(path, text):  # not in a fork of the holder
        with suppress(OSError):  # a lock that can't be removed is taken over when its holder is gone
            _remove(path, lambda grave: _is_of(grave, text))


def _remove(path: Path, may: Callable[[Path], bool]) -> bool:
    """Remove a lock file, renaming it first so that only one of two processes removes it.

    Args:
        may: returns whether the renamed file can be removed, since it may have been taken over before the rename.

    Raises:
        OSError: if the folder can't be written.
    """
    grave = temporary_path(path)
    try:
        os.rename(path, grave)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise  # a read-only file system: waiting would not help
        return True  # another process was first: try to create it again
    if may(grave):
        grave.unlink(missing_ok=True)
        return True
    try:
        os.link(grave, path)
        grave.unlink(missing_ok=True)
    except FileExistsError:
        grave.unlink(missing_ok=True)
    except OSError:  # the file system has no hard links
        with suppress(OSError):
            os.rename(grave, path)
    return False
