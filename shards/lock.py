"""Locks between processes and nodes, made by O_EXCL alone: flock is often not mounted on Lustre.

A lock is a file that says who holds it. A holder touches it while it works; one that stopped touching it
(killed, its node lost) is taken over. Locks here only avoid double work, every result still appears by
rename: should two holders ever overlap, both write the same bytes and the later rename wins.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A lock not touched for so long is free: twelve missed heartbeats, far above clock skew between nodes."""


class Lock:
    """A lock file that this process may hold.

    Args:
        path: of the lock file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free or its holder is gone; returns at once."""
        for _ in range(2):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if not _abandoned(self.path) or not _remove_abandoned(self.path):
                    return False
                continue
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{socket.gethostname()} {os.getpid()} {_start_time(os.getpid())}\n")
            self._released.clear()
            self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)
            self._thread.start()
            return True
        return False

    def release(self) -> None:
        """Give the lock back."""
        self._released.set()
        if self._thread:
            self._thread.join()
            self.path.unlink(missing_ok=True)
            self._thread = None

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                os.utime(self.path)
            except OSError:
                return  # taken over


@contextmanager
def held(path: Path, poll_s: float = 0.2) -> Iterator[None]:
    """Hold the lock during the block, waiting for it as long as a live process has it."""
    lock, begin, told = Lock(path), time.monotonic(), False
    while not lock.acquire():
        if not told and time.monotonic() - begin > 3:
            print(f"waiting for {holder(path) or 'another process'} to release {path}", file=sys.stderr)
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


def _abandoned(path: Path) -> bool:
    """Whether the holder is gone: dead on this host, or silent for ``STALE_S``."""
    try:
        age = time.time() - path.stat().st_mtime
        parts = path.read_text().split()
    except OSError:
        return True  # released meanwhile
    if age > STALE_S:
        return True
    if len(parts) != 3 or parts[0] != socket.gethostname():
        return False  # just being written, or another node's
    return _start_time(int(parts[1])) != parts[2]


def _remove_abandoned(path: Path) -> bool:
    """Remove an abandoned lock: by rename first, so that of two takers only one removes it."""
    grave = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        os.rename(path, grave)
    except OSError:
        return True  # another taker was first: try to make it anew
    if not _abandoned(grave):  # it was released and taken again between the look and the rename
        try:
            os.link(grave, path)
        except OSError:
            pass
        grave.unlink(missing_ok=True)
        return False
    grave.unlink(missing_ok=True)
    return True


def _start_time(pid: int) -> str:
    """When a process of this host began, in clock ticks since boot; "" where there is none. Tells reused pids apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
