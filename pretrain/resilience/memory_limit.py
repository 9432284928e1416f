"""Processes that the kernel killed for memory, by the counters of this process's control groups."""

import re
from collections.abc import Iterator
from pathlib import Path

from shards.files.processes import host_name

UNLIMITED = 1 << 60
"""Bytes from which a limit is none; cgroup v1 writes a number near 2**63."""


def count_oom_kills(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> int:
    """Count the processes killed so far in the control groups of this process that have a memory limit.

    The count is for comparison with a later one: version 2 counts a kill in the groups above, too. Slurm, Kubernetes
    and systemd limit the memory of jobs by control groups. Those above this process's own are read, too, since a limit
    may be set for a whole job; those without a limit may belong to others as well.

    Args:
        root: where control groups are mounted, version 2 or version 1 with its controllers in folders.
        groups: this process's control groups.
    """
    return sum(_kills(folder) for folder in _folders(root, groups))


def oom_clause(before: int) -> str:
    """Return a clause for a message if processes were killed since `count_oom_kills` returned ``before``, else ""."""
    if count_oom_kills() <= before:
        return ""
    return (
        f"; the kernel killed a process on {host_name()} at the memory limit of this job: ask for more memory, or "
        "lower data.prefetch, data.read_threads or train.micro_batch, and run the command again"
    )


def _folders(root: Path, groups: Path) -> Iterator[Path]:
    """Yield the folders of this process's memory control groups, each followed by those above it."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            base = root / "memory" if controllers else root
            relative = Path(path.lstrip("/"))
            yield from (base / part for part in (relative, *relative.parents))


def _kills(folder: Path) -> int:
    """Return the processes killed in a control group; 0 if it has no limit."""
    v2 = (folder / "memory.max", folder / "memory.events")
    v1 = (folder / "memory.limit_in_bytes", folder / "memory.oom_control")
    for limit, events in (v2, v1):
        try:
            text = limit.read_text().strip()
            if text == "max" or int(text) >= UNLIMITED:
                continue
            found = re.search(r"^oom_kill (\d+)$", events.read_text(), re.MULTILINE)
        except (OSError, ValueError):
            continue
        return int(found[1]) if found else 0
    return 0
