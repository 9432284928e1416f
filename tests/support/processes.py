"""Process groups for tests: one subprocess for each rank, on the CPU."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(script: Path, world_size: int, *arguments: str, timeout: float) -> None:
    """Run a script as ``world_size`` ranks; raises AssertionError with all output if a rank fails."""
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(script), *arguments]
    ranks = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    except subprocess.TimeoutExpired:
        for rank in ranks:
            os.killpg(rank.pid, signal.SIGKILL)
        outputs = [rank.communicate()[0] for rank in ranks]
        raise AssertionError(f"no end within {timeout:.0f} s:\n" + "\n---\n".join(outputs)) from None
    codes = [rank.returncode for rank in ranks]
    assert codes == [0] * world_size, f"exit codes {codes}:\n" + "\n---\n".join(outputs)
