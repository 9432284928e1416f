"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import IO

TEMPORARY = ".tmp"
"""Suffix of everything unfinished; a name that ends so is never read and may be removed."""


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """A binary file for writing that takes its name only when the block ends without an error."""
    # host, process and thread: on a shared file system several nodes may write the same name at once
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{get_ident()}{TEMPORARY}")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


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
