"""Which process wrote a file, and whether it still exists: by host, number and start time."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["alive", "suspended", "gone", "elsewhere"]


@dataclass(frozen=True)
class ProcessId:
    """A process among those of all hosts that share a file system.

    Attributes:
        start: when it began, in clock ticks since boot: tells reused numbers apart.
        machine: boot and PID namespace: containers may share a host name without seeing each other's processes.
    """

    host: str
    pid: int
    start: str
    machine: str = ""

    @classmethod
    def own(cls) -> "ProcessId":
        return cls(socket.gethostname(), os.getpid(), _stat(os.getpid())[1], _machine())

    @classmethod
    def parse(cls, text: str) -> "ProcessId":
        """Read what ``str`` wrote, with anything after it; raises ValueError."""
        host, pid, start, *rest = text.split()
        return cls(host, int(pid), start, rest[0] if rest else "")

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.start} {self.machine}"

    def state(self) -> State:
        """What can be said of it here; ``elsewhere`` where its processes can't be seen from here."""
        if self.host != socket.gethostname() or self.machine not in ("", _machine()):
            return "elsewhere"
        state, start = _stat(self.pid)
        if start != self.start or state in ("", "Z", "X"):
            return "gone"
        return "suspended" if state in ("T", "t") else "alive"


def _stat(pid: int) -> tuple[str, str]:
    """State letter and start time of a process of this host; empty where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "unknown"
