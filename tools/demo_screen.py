"""Output of `make demo`: the log file receives every line of its commands, the screen only the relevant ones."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TextIO

LAUNCHER = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[[A-Z]+\] \[\w+\.py")
"""Lines of DeepSpeed itself, from the launcher and each rank."""

DETAIL = re.compile(r"  data/compute/communication by rank")
PROGRESS = re.compile(r"(?P<name>.*?):?\s+(\d+%\||\d+/\d+\s|epoch \d+/)")


class Screen:
    """Shows lines; on a terminal, a progress line replaces the previous one.

    Args:
        log: file for every line; the first line overwrites an older file.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._file: TextIO | None = None
        self._progress: str | None = None
        self._lock = threading.Lock()

    def show(self, line: str = "") -> None:
        """Write a line to the log, and to the screen unless it is the launcher's."""
        with self._lock:
            self._record(line)
            if LAUNCHER.match(line) or DETAIL.match(line):
                return
            match = PROGRESS.match(line)
            name = match["name"] if match else None
            if sys.stdout.isatty():
                self._draw(line, name)
            else:
                print(line, flush=True)

    def _record(self, line: str) -> None:
        if self._file is None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.log, "w", encoding="utf-8", buffering=1)
        self._file.write(f"{line}\n")

    def _draw(self, line: str, name: str | None) -> None:
        """Overwrite a progress line of the same name; other lines start below it."""
        if self._progress is not None:
            sys.stdout.write("\r\x1b[2K" if name == self._progress else "\n")
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write(f"{line}\n" if name is None else line[:width])
        sys.stdout.flush()
        self._progress = name

    def start(self, command: list[str], folder: Path, environment: dict[str, str]) -> "Shown":
        """Start a command in a folder and show its output while it runs."""
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        return Shown(self, process)


class Shown:
    """A running command whose output goes to a screen."""

    def __init__(self, screen: Screen, process: subprocess.Popen) -> None:
        self._process = process
        self._thread = threading.Thread(target=self._copy, args=(screen,), daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        """Return whether the command is still running."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Wait until the last line is shown and return the exit code."""
        code = self._process.wait()
        self._thread.join(timeout=5)  # a grandchild may hold the pipe open
        return code

    def _copy(self, screen: Screen) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            screen.show(line.rstrip("\n"))
