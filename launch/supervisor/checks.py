"""Checks of the nodes before ranks are started on them: Slurm's state, and launch/node_check.py on each."""

import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from launch.supervisor.allocation import Allocation
from launch.supervisor.step import srun

CHECK_S = 60.0
"""Time limit for the checks of a node."""
AT_ONCE = 64
"""Nodes that are checked at the same time."""
PROGRAM = Path(__file__).resolve().parent.parent / "node_check.py"


@dataclass(frozen=True)
class NodeReport:
    """What a node is like.

    Attributes:
        problem: why it can't be used, in one line; empty for a good node.
        address: address at which Slurm reaches it.
        port: a free port there.
    """

    problem: str
    address: str = ""
    port: int = 0


def check_nodes(
    allocation: Allocation, run: Path, gpus: int, python: Sequence[str], attempt: int
) -> dict[str, NodeReport]:
    """Check all nodes of the job at the same time.

    Args:
        run: run folder, which every node writes to.
        gpus: GPUs that must answer on each.
        python: command of Python.
        attempt: number of the coming attempt, on which the ports depend.
    """
    states = allocation.states()
    with _listening() as port:
        meet = f"{states[allocation.nodes[0]].address}:{port}"

        def check(node: str) -> NodeReport:
            state = states.get(node)
            if state is None or not state.is_fit:
                return NodeReport(str(state) if state else "Slurm does not know it")
            words = [*python, str(PROGRAM), str(run), meet, f"--gpus={gpus}", f"--attempt={attempt}"]
            return _check(node, state.address, [*srun([node], 1, "node-check"), *words])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(allocation.nodes, pool.map(check, allocation.nodes), strict=True))


def _check(node: str, address: str, command: list[str]) -> NodeReport:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CHECK_S)
        answer = json.loads(done.stdout.splitlines()[-1])
        return NodeReport(answer["problem"], address, answer["port"])
    except subprocess.TimeoutExpired:
        return NodeReport(f"its checks did not end within {CHECK_S:.0f} s", address)
    except (ValueError, IndexError, KeyError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return NodeReport(
            f"its checks ended with code {done.returncode}: {lines[-1] if lines else 'no output'}", address
        )


@contextmanager
def _listening() -> Iterator[int]:
    """Accept connections on a port, and yield it."""
    with socket.create_server(("", 0), backlog=1024) as server:

        def accept() -> None:
            with suppress(OSError):  # closed
                while True:
                    server.accept()[0].close()

        Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # ends accept
