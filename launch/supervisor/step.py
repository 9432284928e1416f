"""One attempt: a step of srun, watched until it ends, and ended if a part of it has died and the rest has not."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

from launch.supervisor.allocation import Allocation
from launch.supervisor.decide import StepEnd, TaskExit, parse_exit

TICK_S = 1.0
STATES_S = 15.0
"""Seconds between two looks at Slurm's states of the nodes."""
END_S = 45.0
"""Seconds that srun has to end after a task has failed or the run has ended; Slurm's KillWait is 30 by default."""


def srun(nodes: Sequence[str], tasks_per_node: int, name: str, *options: str) -> list[str]:
    """Return the start of an srun command for some nodes of the job; ``name`` is the name of its step.

    Steps overlap: one that was lost with its node would keep its CPUs and GPUs until Slurm notices.
    """
    tasks = len(nodes) * tasks_per_node
    sizes = [f"--nodes={len(nodes)}", f"--ntasks={tasks}", f"--ntasks-per-node={tasks_per_node}"]
    return ["srun", *sizes, f"--nodelist={','.join(nodes)}", f"--job-name={name}", "--overlap", *options]


class Step:
    """A running step.

    Args:
        command: srun command.
        name: name of the step.
        nodes: nodes that it runs on.
        environment: of srun and its tasks.
    """

    def __init__(
        self,
        allocation: Allocation,
        command: list[str],
        name: str,
        nodes: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self._allocation, self._name, self._nodes = allocation, name, nodes
        self._exits: list[TaskExit] = []
        self._dead: dict[str, str] = {}
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._forward, args=[self._process.stderr], daemon=True)
        self._reader.start()

    def wait(self, has_ended: Callable[[], bool]) -> StepEnd:
        """Wait until the step has ended.

        Args:
            has_ended: whether the run has recorded its end.
        """
        next_look, deadline = time.monotonic() + STATES_S, float("inf")
        while self._process.poll() is None:
            time.sleep(TICK_S)
            now = time.monotonic()
            if now > next_look:
                self._dead = self._allocation.dead(self._nodes)
                next_look = time.monotonic() + STATES_S
            if (self._exits or has_ended()) and deadline == float("inf"):
                deadline = now + END_S
            if self._dead or now > deadline:
                self._end()
        self._reader.join(5)
        if not self._dead:  # which may be why it ended
            self._dead = self._allocation.dead(self._nodes)
        code = self._process.returncode
        return StepEnd(code if code >= 0 else 128 - code, self._exits, self._dead)

    def _end(self) -> None:
        self._allocation.end_step(self._name)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _forward(self, stream: IO[bytes]) -> None:
        """Pass srun's error output on, and note its lines on tasks."""
        for line in stream:
            task = parse_exit(line.decode(errors="replace"))
            if task is not None:
                self._exits.append(task)
            with suppress(OSError):  # a log file on a full disk
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
