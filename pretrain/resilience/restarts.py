"""``restarts.jsonl`` in the run folder: each restart of a run within its job, by the job's supervisor.

::

    {"time": "2026-03-01T12:00:00+00:00", "job": "1234", "attempt": 2, "hosts": ["n03"], "why": "task 5: Killed",
     "step": 400, "failed": "2026-03-01T09:00:00+00:00", "nodes": ["n01", "n02", "n04"]}
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from shards.files.journal import Journal
from shards.files.untrusted import read_json_value

RESTARTS_FILE = "restarts.jsonl"
NAMED = 4
"""Nodes that a message names."""


@dataclass(frozen=True)
class Restart:
    """A restart of a run.

    Attributes:
        time: when the ranks were started again, ISO 8601.
        job: ID of the Slurm job.
        attempt: number of the start within the job, from 1; restarts begin with 2.
        hosts: nodes that the failure is attributed to; empty if unknown.
        why: cause of the failure, in one line.
        step: step that the failed process had last recorded.
        failed: ``started`` of that process in ``status.json``.
        nodes: nodes of the new attempt.
    """

    time: str
    job: str
    attempt: int
    hosts: tuple[str, ...]
    why: str
    step: int
    failed: str
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        where = f"{', '.join(self.hosts)}: " if self.hosts else ""
        return f"{where}{self.why}"


def append_restart(folder: Path, restart: Restart) -> None:
    """Append a record; a full disk costs the record, not the restart."""
    journal = Journal(folder / RESTARTS_FILE)
    journal.append((json.dumps(asdict(restart)) + "\n").encode())
    journal.close()


def read_restarts(folder: Path) -> list[Restart]:
    """Return the restarts of a run, oldest first; damaged lines are skipped."""
    try:
        lines = (folder / RESTARTS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    restarts = []
    for line in lines:
        try:
            values = read_json_value(line)
            values = {field.name: values[field.name] for field in fields(Restart)}
            for name in ("hosts", "nodes"):
                values[name] = tuple(map(str, values[name]))
            values |= {"attempt": int(values["attempt"]), "step": int(values["step"])}
            restarts.append(Restart(**values))
        except (ValueError, TypeError, KeyError):
            continue
    return restarts


def failures_by_host(restarts: list[Restart]) -> Counter[str]:
    """Return how many failures are attributed to each node."""
    return Counter(host for restart in restarts for host in restart.hosts)


def name_nodes(nodes: Sequence[str]) -> str:
    """Return a few nodes for a message: ``n01, n02`` or ``n01 to n33 (32 nodes)``."""
    return ", ".join(nodes) if len(nodes) <= NAMED else f"{nodes[0]} to {nodes[-1]} ({len(nodes)} nodes)"
