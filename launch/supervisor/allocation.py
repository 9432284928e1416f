"""The nodes of the current Slurm job, as Slurm's controller describes them."""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launch.directives import limit_seconds
from shards.errors import ConfigError, ForgeError

COMMAND_S = 60.0
"""Time limit for a Slurm command: a busy controller answers late."""
DEAD = ("DOWN", "FAIL")
"""States of nodes on which no step survives."""
UNFIT = (*DEAD, "DRAIN", "NOT_RESPONDING", "NO_RESPOND", "POWER", "REBOOT", "INVAL", "*")
"""Parts of the states of nodes on which no step should be started."""


class NoAnswer(ForgeError):
    """Slurm's controller does not answer."""

    exit_code = 1


@dataclass(frozen=True)
class NodeState:
    """Slurm's record of a node.

    Attributes:
        state: such as ``MIXED+DRAIN``.
        address: address at which Slurm reaches the node.
        reason: why it is down or drained; empty if unknown.
    """

    state: str
    address: str
    reason: str = ""

    @property
    def is_dead(self) -> bool:
        return any(part in self.state for part in DEAD)

    @property
    def is_fit(self) -> bool:
        return not any(part in self.state for part in UNFIT)

    def __str__(self) -> str:
        return f"Slurm says {self.state}" + (f" ({self.reason})" if self.reason else "")


class Allocation:
    """The nodes of this job, in Slurm's order.

    Args:
        environment: of the batch script.

    Raises:
        ConfigError: this process is not part of a job.
        NoAnswer: Slurm does not answer.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        try:
            self.job, nodes = environment["SLURM_JOB_ID"], environment["SLURM_JOB_NODELIST"]
        except KeyError as error:
            raise ConfigError(f"{error.args[0]} is not set: launch/supervise.py runs in job scripts only") from None
        self.nodes = run_slurm("scontrol", "show", "hostnames", nodes).split()

    def states(self, nodes: Iterable[str] | None = None) -> dict[str, NodeState]:
        """Return Slurm's records of some nodes, or of all."""
        names = list(self.nodes if nodes is None else nodes)
        return parse_nodes(run_slurm("scontrol", "show", "node", ",".join(names), "-o"))

    def seconds_left(self) -> float:
        """Return the seconds until the job's time limit; infinity without one."""
        left = run_slurm("squeue", "-h", "-j", self.job, "-o", "%L").strip().splitlines()
        try:
            return float(limit_seconds(left[-1].strip()))
        except (ConfigError, IndexError):  # UNLIMITED, INVALID, or nothing
            return float("inf")

    def end_step(self, name: str) -> None:
        """Kill the tasks of the steps of a name, on all nodes that answer."""
        for line in run_slurm("squeue", "--steps", "-h", "-j", self.job, "-o", "%i %j").splitlines():
            number, _, step = line.strip().partition(" ")
            if step == name:
                run_slurm("scancel", "--signal=KILL", number, check=False)


def parse_nodes(text: str) -> dict[str, NodeState]:
    """Parse the output of ``scontrol show node -o``."""
    found = {}
    for line in text.splitlines():
        values: dict[str, str] = dict(re.findall(r"(\w+)=(\S+)", line))
        reason = re.search(r"Reason=(.*?)(?: \[|$)", line)
        if "NodeName" in values:
            name = values["NodeName"]
            address = values.get("NodeAddr", name)
            found[name] = NodeState(values.get("State", "UNKNOWN"), address, str(reason[1]).strip() if reason else "")
    return found


def run_slurm(*command: str, check: bool = True) -> str:
    """Run a Slurm command within the job and return its output.

    Raises:
        NoAnswer: it fails or takes longer than ``COMMAND_S``, unless ``check`` is False.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        if not check:
            return ""
        raise NoAnswer(f"{command[0]}: {getattr(error, 'strerror', None) or 'no answer'}") from None
    if check and done.returncode:
        raise NoAnswer(f"{' '.join(command[:3])}: {' '.join(done.stderr.split()) or f'code {done.returncode}'}")
    return done.stdout
