"""Process groups for tests: one subprocess for each rank, on the CPU."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from support.preloaded import Preloaded

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SHALLOW = str(REPOSITORY / "tests/support/shallow.py")
"""A plugin for configs: Spec. ViT-Tiny with two blocks."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(script: Path, world_size: int, *arguments: str, timeout: float) -> None:
    """Run a script as ``world_size`` ranks; raises AssertionError with all output if a rank fails."""
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(script), *arguments]
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile()) for _ in range(world_size)]
        ranks = [
            Preloaded(
                command,
                str(REPOSITORY),
                os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
                file,
            )
            for rank, file in enumerate(files)
        ]
        try:
            codes = [rank.wait(max(0.1, deadline - time.monotonic())) for rank in ranks]
            problem = f"exit codes {codes}"
        except subprocess.TimeoutExpired:
            for rank in ranks:
                rank.kill()
            codes, problem = [], f"no end within {timeout:.0f} s"
        assert codes == [0] * world_size, f"{problem}:\n" + "\n---\n".join(read_again(file) for file in files)


def read_again(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
