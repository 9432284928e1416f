"""What ended an attempt, which node is to blame, and which nodes the next one gets. Nothing here talks to Slurm."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pretrain.resilience.signals import STOPPED
from pretrain.resilience.status import RunRecord

MISUSE, DIVERGED = 2, 76
TOO_FEW_NODES = 69
"""Exit code (EX_UNAVAILABLE) of a job whose allocation has too few good nodes left: it is requeued for others."""
PATIENCE = 3
"""Failures in a row without a new checkpoint after which the run has failed: its cause is not a node."""

_EXIT = re.compile(r"^srun: error: (\S+): tasks? ([\d,\-]+): (.+)$")


@dataclass(frozen=True)
class TaskExit:
    """A line of srun on tasks that ended with an error: ``srun: error: n2: tasks 4-7: Exited with exit code 1``."""

    node: str
    tasks: str
    how: str

    @property
    def code(self) -> int | None:
        """The tasks' exit code; None if a signal ended them."""
        match = re.fullmatch(r"Exited with exit code (\d+)", self.how)
        return int(match[1]) if match else None

    def __str__(self) -> str:
        word = "task" if self.tasks.isdigit() else "tasks"
        return f"{word} {self.tasks}: {self.how[0].lower()}{self.how[1:]}"


@dataclass(frozen=True)
class StepEnd:
    """How an attempt ended.

    Attributes:
        code: srun's exit code.
        exits: tasks that ended with an error, the first one first.
        dead: nodes that Slurm lost meanwhile, and its words on each.
    """

    code: int
    exits: list[TaskExit] = field(default_factory=list)
    dead: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cause:
    """Why an attempt failed: the nodes to blame, if known, and one line."""

    hosts: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return f"{', '.join(self.hosts)}: {self.why}" if self.hosts else self.why


def parse_exit(line: str) -> TaskExit | None:
    """Parse a line of srun's output; None if it is another line."""
    match = _EXIT.match(line.rstrip())
    return TaskExit(*match.groups()) if match else None


def final_code(end: StepEnd, record: RunRecord | None) -> int | None:
    """Return the job's exit code if the attempt was the last one, or None if the run should be started again.

    Args:
        record: what the attempt wrote to status.json; None if it never did.
    """
    codes = {task.code for task in end.exits} | {end.code}
    if record is not None and record.status == "complete":
        return 0
    if record is not None and record.status in ("stopped", "interrupted"):
        return STOPPED
    for code in (MISUSE, DIVERGED):
        if code in codes:
            return code
    # signals of the scheduler, before Python could answer
    return end.code if record is None and end.code in (STOPPED, 138, 143) and not end.dead else None


def find_cause(end: StepEnd, record: RunRecord | None, nodes: Sequence[str], per_node: int) -> Cause:
    """Return why an attempt failed.

    Dead nodes explain everything else. Next come ranks that a hung run waited for, nodes whose tasks never ended while
    the others lost them, and the first task that ended with an error: the others end because of it.

    Args:
        record: what the attempt wrote to status.json; None if it never did.
        nodes, per_node: nodes of the attempt, and ranks of each.
    """
    if end.dead:
        return Cause(tuple(end.dead), "; ".join(dict.fromkeys(end.dead.values())))
    reason = record.reason if record is not None and record.status == "failed" else ""
    if "hung: " in reason:
        late = re.search(r": rank (\d.*?) (?:is late|does not answer)", reason)
        ranks = [int(rank) for rank in re.findall(r"(?:^|, )(\d+)", late[1])] if late else []
        return Cause(_hosts(ranks, nodes, per_node), reason.partition("; stacks in")[0])
    silent = tuple(node for node in nodes if node not in {task.node for task in end.exits})
    if silent and end.exits and "lost another rank" in reason and all(task.code == 1 for task in end.exits):
        return Cause(silent, "did not end with the others: dead or disconnected")
    first = end.exits[0] if end.exits else None
    if first is not None and (first.code is None or not reason or "lost another rank" in reason):
        return Cause((first.node,), str(first))
    if reason:
        named = re.match(r"rank (\d+)", reason)
        return Cause(_hosts([int(named[1])] if named else [], nodes, per_node), reason)
    return Cause((), f"srun ended with code {end.code}")


def choose_nodes(good: Sequence[str], failures: Mapping[str, int], counts: Sequence[int]) -> list[str]:
    """Return the nodes of the next attempt in their given order, those with the fewest failures so far; [] if too few.

    Args:
        good: nodes that pass the checks, in Slurm's order.
        failures: number of earlier failures attributed to each.
        counts: numbers of nodes that the run can use, the largest first.
    """
    count = next((count for count in counts if count <= len(good)), 0)
    chosen = sorted(good, key=lambda node: failures.get(node, 0))[:count]
    return [node for node in good if node in chosen]


def _hosts(ranks: Sequence[int], nodes: Sequence[str], per_node: int) -> tuple[str, ...]:
    """Return the nodes of ranks; srun fills one node after the other."""
    return tuple(dict.fromkeys(nodes[rank // per_node] for rank in ranks if rank // per_node < len(nodes)))
