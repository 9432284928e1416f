"""The nodes of the current Slurm job, as Slurm's controller describes them."""

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from launch.directives import limit_seconds
from shards.errors import ConfigError, ForgeError

COMMAND_S = 60.0
"""Time limit for a Slurm command: a busy controller answers late."""
PAUSES_S = (5, 20, 60, 120)
"""Seconds between the attempts to ask a controller that does not answer: it may be restarting."""
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

    def states(self) -> dict[str, NodeState]:
        """Return Slurm's records of all nodes."""
        return parse_nodes(ask("scontrol", "show", "node", ",".join(self.nodes), "-o"))

    def dead(self, nodes: Iterable[str]) -> dict[str, str]:
        """Return those of some nodes that are dead, with Slurm's words; {} if Slurm does not answer at once."""
        try:
            states = parse_nodes(run_slurm("scontrol", "show", "node", ",".join(nodes), "-o"))
        except NoAnswer:  # training goes on without the controller
            return {}
        return {node: str(state) for node, state in states.items() if state.is_dead}

    def seconds_left(self) -> float:
        """Return the seconds until the job's time limit; infinity without one."""
        left = ask("squeue", "-h", "-j", self.job, "-o", "%L").strip().splitlines()
        try:
            return float(limit_seconds(left[-1].strip()))
        except (ConfigError, IndexError):  # UNLIMITED, INVALID, or nothing
            return float("inf")

    def end_step(self, name: str) -> None:
        """Kill the tasks of the steps of a name, on all nodes that answer."""
        with suppress(NoAnswer):
            for line in run_slurm("squeue", "--steps", "-h", "-j", self.job, "-o", "%i %j").splitlines():
                number, _, step = line.strip().partition(" ")
                if step == name:
                    run_slurm("scancel", "--signal=KILL", number)


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


def ask(*command: str) -> str:
    """Run a Slurm command within the job, again if the controller does not answer, and return its output.

    Raises:
        NoAnswer: there is no answer for minutes.
    """
    for pause in PAUSES_S:
        try:
            return run_slurm(*command)
        except NoAnswer:
            time.sleep(pause)
    return run_slurm(*command)


def run_slurm(*command: str) -> str:
    """Run a Slurm command within the job and return its output.

    Raises:
        NoAnswer: it fails or takes longer than ``COMMAND_S``.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(f"{command[0]}: {getattr(error, 'strerror', None) or 'no answer'}") from None
    if done.returncode:
        raise NoAnswer(f"{' '.join(command[:3])}: {' '.join(done.stderr.split()) or f'code {done.returncode}'}")
    return done.stdout
