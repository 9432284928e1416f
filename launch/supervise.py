"""Keeps a run going within its Slurm job: starts the ranks on good nodes, and again when a rank or a node fails.

    supervise.py --run RUN --nodes 4,3 --tasks-per-node 8 -- python launch/pretrain.py --config ...

Job scripts of `launch/slurm.py pretrain --spares N` call it. Its exit code is the run's, 75 to be continued in another
job, or 69 if too few good nodes are left.
"""

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Run by path, Python puts launch/ first on sys.path, where the name "pretrain" would be another file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.supervisor.allocation import Allocation
from launch.supervisor.checks import NodeReport, check_nodes
from launch.supervisor.decide import PATIENCE, TOO_FEW_NODES, Cause, StepEnd, choose_nodes, final_code, find_cause
from launch.supervisor.step import Step, srun
from pretrain.resilience.restarts import Restart, append_restart, failures_by_host, name_nodes, read_restarts
from pretrain.resilience.signals import STOPPED
from pretrain.resilience.status import RunRecord, now, read_record
from shards.cli import Parser, exit_code, not_negative, positive
from shards.console import get_logger

START_S = 120
"""Time that an attempt needs before it is worth starting."""

logger = get_logger("launch.supervise")


def main(argv: list[str] | None = None) -> None:
    """Run until the run needs no other attempt in this job, and end the process with the job's exit code."""
    parser = Parser(prog="supervise.py", description=str(__doc__).splitlines()[0], plugins=False)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--nodes", type=_counts, required=True, help="numbers of nodes that fit, such as 4,3,2")
    parser.add_argument("--tasks-per-node", type=positive, required=True)
    parser.add_argument("--gpus", type=not_negative, default=0, help="that must answer on each node")
    parser.add_argument("--signal-seconds", type=positive, default=60, help="between the job's signal and its end")
    parser.add_argument("command", nargs="+", help="of each rank")
    arguments = parser.parse_args(argv)
    sys.exit(exit_code(lambda: Supervisor(arguments, Allocation()).supervise()))


def _counts(text: str) -> list[int]:
    return sorted(map(positive, text.split(",")), reverse=True)


@dataclass(frozen=True)
class Failure:
    """A failed attempt: why, srun's exit code, the step it had recorded, and ``started`` in status.json."""

    cause: Cause
    code: int
    step: int
    started: str


class Supervisor:
    """The attempts of a run within a job.

    Args:
        arguments: options of the command line.
        allocation: nodes of the job.
    """

    def __init__(self, arguments: argparse.Namespace, allocation: Allocation) -> None:
        self.allocation, self.run = allocation, arguments.run
        self.counts, self.tasks_per_node, self.gpus = arguments.nodes, arguments.tasks_per_node, arguments.gpus
        self.needed_s = arguments.signal_seconds + START_S
        self.command: list[str] = arguments.command
        program = next(index for index, word in enumerate(self.command) if word.endswith(".py"))
        self.python = self.command[:program]
        self.attempt = 0

    def supervise(self) -> int:
        """Start the run until it needs no other attempt; return the job's exit code."""
        failure: Failure | None = None
        fruitless = 0
        while True:
            if self.allocation.seconds_left() < self.needed_s:
                logger.warning("the time limit of the job is too near for another attempt")
                return STOPPED
            self.attempt += 1
            reports = check_nodes(self.allocation, self.run, self.gpus, self.python, self.attempt)
            nodes = self._choose(reports, failure.cause.hosts if failure else ())
            if not nodes:
                return TOO_FEW_NODES
            if failure is not None:
                self._record(failure, nodes)
            saved = newest_step(self.run)
            result = self._try(nodes, reports[nodes[0]])
            if isinstance(result, int):
                return result
            failure = result
            logger.error(f"attempt {self.attempt} failed: {failure.cause}")
            fruitless = 0 if newest_step(self.run) > saved else fruitless + 1
            if fruitless == PATIENCE:
                logger.error(f"{PATIENCE} failures in a row without a new checkpoint: the run has failed")
                return failure.code or 1

    def _choose(self, reports: dict[str, NodeReport], blamed: tuple[str, ...]) -> list[str]:
        """Return the nodes of the next attempt, and log those that are left out; [] if too few are good.

        Args:
            blamed: nodes that the last failure is attributed to; spares take their place.
        """
        for node, report in reports.items():
            if report.problem:
                logger.warning(f"{node} is left out: {report.problem}")
        good = [node for node, report in reports.items() if not report.problem]
        nodes = choose_nodes(good, failures_by_host(read_restarts(self.run)) + Counter(blamed), self.counts)
        if nodes:
            spares = [node for node in good if node not in nodes]
            logger.info(f"attempt {self.attempt} on {name_nodes(nodes)}; spare: {name_nodes(spares) or 'none'}")
        else:
            logger.error(
                f"{len(good)} good nodes are left, {self.counts[-1]} are needed: the job is requeued for others"
            )
        return nodes

    def _record(self, failure: Failure, nodes: list[str]) -> None:
        cause, job = failure.cause, self.allocation.job
        restart = Restart(now(), job, self.attempt, cause.hosts, cause.why, failure.step, failure.started, tuple(nodes))
        append_restart(self.run, restart)

    def _try(self, nodes: list[str], head: NodeReport) -> int | Failure:
        """Run an attempt; return the job's exit code, or the failure after which the run can be started again.

        Args:
            head: report of the first node, where rank 0 listens.
        """
        before = read_record(self.run)
        name = f"attempt-{self.attempt}"
        cpus = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        options = ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"]
        environment = os.environ | {"MASTER_ADDR": head.address, "MASTER_PORT": str(head.port)}
        command = [*srun(nodes, self.tasks_per_node, name, *options), *self.command]

        def written() -> RunRecord | None:
            record = read_record(self.run)
            return None if record is None or (before and record.started == before.started) else record

        def has_ended() -> bool:
            record = written()
            return record is not None and record.status != "running"

        end: StepEnd = Step(self.allocation, command, name, nodes, environment).wait(has_ended)
        record = written()
        code = final_code(end, record)
        if code is not None:
            return code
        reached = record or before
        step, started = (reached.step, reached.started) if reached else (0, "")
        return Failure(find_cause(end, record, nodes, self.tasks_per_node), end.code, step, started)


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint, from its name; -1 without one."""
    names = (path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*"))
    return max((int(name) for name in names if name.isdigit()), default=-1)


if __name__ == "__main__":
    main()
