"""Locks between processes and nodes, made by O_EXCL alone: flock is often not mounted on Lustre.

A lock is a file that says who holds it. A holder touches it while it works; one that stopped touching it
(killed, its node lost) is taken over. A holder that was only suspended finds out when it goes on, and leaves its
successor's lock alone.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from shards.console import get_logger
from shards.files.atomic import temporary_path
from shards.files.processes import ProcessId

logger = get_logger(__name__)

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A lock not touched for so long is free: twelve missed heartbeats."""


class Lock:
    """A lock file that this process may hold; released when the object is gone, too.

    Args:
        path: of the lock file; its folder exists.
        from_living: whether a silent holder is taken over although its process is seen to exist (suspended, or stuck
            in a system call). Right where a lock only avoids double work and every result appears by rename.
    """

    def __init__(self, path: Path, from_living: bool = True) -> None:
        self.path, self.from_living = path, from_living
        self._text = ""
        self._lost = threading.Event()
        self._end: Callable[[], object] | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free or its holder is gone; returns at once.

        Raises:
            OSError: its file can't be written.
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
            except OSError:  # a full disk: without a name in it nobody holds it
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
        """Whether another process has taken the lock over, as of the last heartbeat."""
        return self._lost.is_set()

    def is_held(self) -> bool:
        """Whether the file still names this holder; looks at once."""
        if self._end is not None and not _is_of(self.path, self._text):
            self._lost.set()
        return self._end is not None and not self.is_lost

    def release(self) -> None:
        """Give the lock back, unless another process has it by now."""
        if self._end is not None:
            self._end()
            self._end = None

    def _is_abandoned(self, path: Path) -> bool:
        """Whether the holder is gone: dead on this host, or silent for ``STALE_S``."""
        try:
            holder, age = _look(path)
        except OSError:
            return True  # released meanwhile
        state = "elsewhere" if holder is None else holder.state()  # None: being written
        if state == "gone":
            return True
        if state != "elsewhere" and not self.from_living:
            return False
        return age > STALE_S


@contextmanager
def held(path: Path, poll_s: float = 0.2) -> Iterator[None]:
    """Hold the lock during the block, waiting for it as long as a live process has it."""
    lock, begin, told = Lock(path), time.monotonic(), False
    while not lock.acquire():
        if not told and time.monotonic() - begin > 3:
            logger.warning(f"waiting for {holder(path) or 'another process'} to release {path}")
            told = True
        time.sleep(poll_s)
    try:
        yield
    finally:
        lock.release()


def holder(path: Path) -> str:
    """Who holds the lock, for messages: ``"node17 4711"``; empty where nobody does."""
    try:
        return " ".join(path.read_text().split()[:2])
    except OSError:
        return ""


def silence(path: Path) -> float:
    """Seconds since a lock was touched; raises OSError where there is none."""
    return _look(path)[1]


def _look(path: Path) -> tuple[ProcessId | None, float]:
    """Holder (None: its file is being written) and seconds since the last heartbeat."""
    with open(path) as file:  # NFS: opened, its attributes are not those of a cache
        text, touched = file.read(), os.fstat(file.fileno()).st_mtime
    try:
        return ProcessId.parse(text), _age(path, touched)
    except ValueError:
        return None, _age(path, touched)


def _age(path: Path, touched: float) -> float:
    """Seconds since ``touched``; where it is long ago, by the file system's clock: those of nodes may differ."""
    age = time.time() - touched
    if abs(age) > STALE_S:
        probe = temporary_path(path)
        with suppress(OSError):
            probe.touch()
            age = probe.stat().st_mtime - touched
            probe.unlink()
    return age


def _is_of(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except FileNotFoundError:
        return False
    except OSError:  # a file system that hangs or went away: nothing says that another has it
        return True


def _beat(path: Path, text: str, released: threading.Event, lost: threading.Event) -> None:
    """Touch the lock until it is released or another's."""
    while not released.wait(HEARTBEAT_S):
        if not _is_of(path, text):
            lost.set()
            return
        try:
            os.utime(path)
        except OSError:  # no such call on some FUSE file systems; or the file system is away, for now
            with suppress(OSError):
                path.write_text(text)


def _give_back(path: Path, text: str, released: threading.Event) -> None:
    released.set()
    if ProcessId.parse(text).pid == os.getpid() and _is_of(path, text):  # not in a fork of the holder
        _remove(path, lambda grave: _is_of(grave, text))


def _remove(path: Path, may: Callable[[Path], bool]) -> bool:
    """Remove a lock file: by rename first, so that of two takers only one removes it.

    Args:
        may: asked of the renamed file, which may have become another's between the look and the rename.
    """
    grave = temporary_path(path)
    try:
        os.rename(path, grave)
    except OSError:
        return True  # another was first: try to make it anew
    if may(grave):
        grave.unlink(missing_ok=True)
        return True
    try:
        os.link(grave, path)
        grave.unlink(missing_ok=True)
    except FileExistsError:
        grave.unlink(missing_ok=True)
    except OSError:  # a file system without links
        with suppress(OSError):
            os.rename(grave, path)
    return False
