"""Identity of the process that wrote a file, by host, PID and start time, and whether it still exists."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["alive", "suspended", "gone", "elsewhere"]


def host_name() -> str:
    """Return the name of this host for messages: Slurm's name of the node in a Slurm job, else the system's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_name(rank: int | str) -> str:
    """Return this process's rank for messages, with its host: ``rank 3 on n02``."""
    return f"rank {rank} on {host_name()}"


@dataclass(frozen=True)
class ProcessId:
    """A process, unique among the hosts that share a file system.

    Attributes:
        start: start time in clock ticks since boot; distinguishes reused PIDs.
        machine: boot and PID namespace: containers can share a host name without seeing each other's processes.
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
        """Parse the output of ``str``, ignoring any text after it; raises ValueError."""
        host, pid, start, *rest = text.split()
        return cls(host, int(pid), start, rest[0] if rest else "")

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.start} {self.machine}"

    def state(self) -> State:
        """Return the state of the process; ``elsewhere`` if it is not visible from this host or container."""
        if self.host != socket.gethostname() or self.machine not in ("", _machine()):
            return "elsewhere"
        state, start = _stat(self.pid)
        if start != self.start or state in ("", "Z", "X"):
            return "gone"
        return "suspended" if state in ("T", "t") else "alive"


def _stat(pid: int) -> tuple[str, str]:
    """Return the state letter and start time of a process on this host; empty strings if there is none."""
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
