"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import IO

TEMPORARY = ".tmp"
"""Suffix of everything unfinished; a name that ends so is never read and may be removed."""


def temporary_path(path: Path) -> Path:
    """A name for the unfinished file, in the same folder."""
    # host, process and thread: on a shared file system several nodes may write the same name at once
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{get_ident()}{TEMPORARY}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path, for libraries that write by name; its file takes ``path`` when the block ends without an
    error."""
    temporary = temporary_path(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """A binary file for writing that takes its name only when the block ends without an error."""
    with atomic_path(path) as temporary:
        temporary.unlink(missing_ok=True)  # a link that was planted under this name would be followed
        with open(temporary, "x+b") as file:
            yield file


def sweep(folder: Path, pattern: str) -> None:
    """Remove the temporary files of a pattern (``"shard-000001.*"``) that no process can still be writing.

    A name tells host and process. On this host a process is looked for; files of other hosts count as left
    behind when nothing was written to them for ten minutes.
    """
    for path in folder.glob(f"{pattern}{TEMPORARY}"):
        try:
            _, process, _ = path.name.removesuffix(TEMPORARY).rsplit(".", 2)
            own = f".{socket.gethostname()}.{process}." in path.name
            alive = _is_alive(int(process)) if own else time.time() - path.stat().st_mtime < 600
        except (OSError, ValueError):
            alive = False
        if not alive:
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a small file in one step; text is stored as UTF-8."""
    with atomic_open(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
