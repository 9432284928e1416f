"""Atomic file writes: temporary name, fsync, rename, fsync of the folder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import IO

TEMPORARY = ".tmp"
"""Suffix of unfinished files; files with this suffix are never read and can be removed."""
CLOCK_S = 60.0
"""Ages up to this are taken from this host's clock."""


def temporary_path(path: Path) -> Path:
    """Return a path for the unfinished file in the same folder."""
    # host, process and thread: on a shared file system several nodes can write the same name at once
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{get_ident()}{TEMPORARY}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path, for libraries that write by name, and rename it to ``path`` if the block succeeds."""
    temporary = temporary_path(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # a read-only file system
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from None  # write() and fsync() name no file
        raise
    fsync_folder(path.parent)


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file for writing that gets its name only if the block succeeds."""
    with atomic_path(path) as temporary:
        temporary.unlink(missing_ok=True)  # a symlink planted under this name would be followed
        with open(temporary, "x+b") as file:
            yield file


def sweep(folder: Path, pattern: str) -> None:
    """Remove the temporary files that match a pattern (``"shard-000001.*"``) and that no process is still writing.

    A name contains host and process. On this host the process is checked; files of other hosts are considered
    abandoned if they have not been modified for ten minutes.
    """
    for path in folder.glob(f"{pattern}{TEMPORARY}"):
        try:
            _, process, _ = path.name.removesuffix(TEMPORARY).rsplit(".", 2)
            is_own = f".{socket.gethostname()}.{process}." in path.name
            alive = _is_alive(int(process)) if is_own else age(path) < 600
        except (OSError, ValueError):
            alive = False
        if not alive:
            path.unlink(missing_ok=True)


def age(path: Path, changed: float | None = None) -> float:
    """Return the seconds since a file or folder changed; if they are many, by the clock of its file system.

    Clocks of hosts differ, and a file server sets the times of files by its own.

    Args:
        changed: its modification time; by default it is read.
    """
    changed = path.stat().st_mtime if changed is None else changed
    seconds = time.time() - changed
    if abs(seconds) > CLOCK_S:
        probe = temporary_path(path)
        with suppress(OSError):
            probe.touch()
            seconds = probe.stat().st_mtime - changed
            probe.unlink()
    return seconds


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a small file atomically; text is encoded as UTF-8."""
    with atomic_open(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def fsync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
