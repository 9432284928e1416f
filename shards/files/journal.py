"""Best-effort files such as logs: if the disk is full, records are lost but the program continues."""

import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from shards.console import get_logger
from shards.files.processes import host_name
from shards.files.system_errors import error_text, remedy

logger = get_logger(__name__)

QUIET_S = 600.0
"""Minimum number of seconds between two warnings about a file: on an almost full disk, small writes succeed while large
ones fail."""


class BestEffort:
    """Context manager for writes to one file that logs the first error and counts further ones until a write succeeds.

    Args:
        path: the file, for messages.
        errors: exceptions to suppress.
    """

    def __init__(self, path: Path | str, errors: type[Exception] = OSError) -> None:
        self.path, self.errors = path, errors
        self._missed, self._warned, self._quiet_until = 0, False, 0.0

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            if self._warned:
                _warn(f"{self.path}: written again; {self._missed} writes are missing")
                self._warned, self._missed = False, 0
            return False
        if not isinstance(error, self.errors):
            return False
        self._missed += 1
        if not self._warned and time.monotonic() > self._quiet_until:
            self._warned, self._quiet_until = True, time.monotonic() + QUIET_S
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError):
                why = f"{error_text(error)} on {host_name()}: {remedy(error, self.path)}"
            _warn(f"{self.path}: not written: {why}; the run continues without it")
        return True


class Journal:
    """An append-only file of complete records, created with the first one; records that can't be written are dropped.

    Args:
        path: path of the file; its folder is created if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._effort = BestEffort(path)
        self._file: IO[bytes] | None = None

    def append(self, record: bytes) -> bool:
        """Write a record completely or not at all; returns whether it was written."""
        with self._effort:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab", buffering=0)
            before = os.fstat(self._file.fileno()).st_size
            rest = memoryview(record)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(before)  # readers would stop at a partial record
                self.close()
                raise
            return True
        return False

    def close(self) -> None:
        """Close the file; the next record reopens it."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def sync(self) -> None:
        """Flush all records to disk."""
        if self._file is not None:
            with self._effort:
                os.fsync(self._file.fileno())


def _warn(text: str) -> None:
    logger.warning(" ".join(text.split()))
