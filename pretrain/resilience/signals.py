"""Requests to stop: SIGTERM, SIGUSR1 or SIGINT to this process, or the end of the `deepspeed` command.

This module imports nothing heavy: launch/pretrain.py makes a `StopRequest` before anything else.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

STOPPED = 75
"""Exit code (EX_TEMPFAIL) of a run that was asked to stop and has saved, or had nothing to save yet: the same command
continues it."""


class StopRequest:
    """Handles the signals by which schedulers and users stop a run; SIGCONT, which Slurm adds, is ignored.

    Until the watchdog sets ``watched``, there is nothing to save: a signal ends the process at once with `STOPPED`.

    Attributes:
        reason: who asked; None if nobody has.
        since: when, in time.monotonic seconds.
        pipe: file descriptor from which every signal's number can be read, even while the main thread waits in C.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.since = 0.0
        self.watched = False
        self.pipe, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        # `deepspeed` has a child that starts the workers; a signal to it kills it and orphans them all
        self._launchers = _parents() if any(word.startswith("--local_rank") for word in sys.argv) else None

    @property
    def is_set(self) -> bool:
        return self.reason is not None

    def set(self, reason: str) -> None:
        """Request a stop; the first reason is kept."""
        if self.reason is None:
            self.since = time.monotonic()
            self.reason = reason

    def read_signals(self) -> None:
        """Read the signals in ``pipe``; call it when the pipe is readable."""
        for number in os.read(self.pipe, 64):
            if number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self.set(signal.Signals(number).name)

    def look_for_launcher(self) -> None:
        """Request a stop if the `deepspeed` command that started this process has ended."""
        if self._launchers is not None and _parents() != self._launchers:
            self.set("the deepspeed command has ended")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.set(signal.Signals(number).name)
        if not self.watched:
            os._exit(STOPPED)


def _parents() -> tuple[int, int]:
    """Return the process IDs of parent and grandparent; 0 if unknown."""
    parent = os.getppid()
    try:
        return parent, int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return parent, 0
