"""Whether a node can run ranks, in seconds: `node_check.py RUN HOST:PORT --gpus N`; the last line of output is JSON.

The run folder exists there, it and the node's own folder for temporary files can be written to, the job's first node is
reached over the network, and each GPU computes. launch/supervise.py starts it on every node before each attempt.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
from pathlib import Path

# Run by path, Python puts launch/ first on sys.path, where the name "pretrain" would be another file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.ranks import free_job_port

PROBE_BYTES = 1 << 20
CONNECT_S = 10.0


def main(argv: list[str] | None = None) -> None:
    """Print the first problem of this node, if there is one, and a free port."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("meet", help="HOST:PORT of the job's first node")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--attempt", type=int, default=1)
    arguments = parser.parse_args(argv)
    problem = find_problem(arguments.run, arguments.meet, arguments.gpus)
    port = free_job_port(os.environ.get("SLURM_JOB_ID", "0"), arguments.attempt)
    print(json.dumps({"problem": problem, "port": port}))


def find_problem(run: Path, meet: str, gpus: int) -> str:
    """Return the first problem of this node in one line; empty if there is none."""
    if not run.exists():
        return f"{run} does not exist there: is its file system mounted?"
    folder = run
    try:
        for folder in (run, Path(os.environ.get("TMPDIR", "/tmp"))):  # tempfile.gettempdir() passes over a full disk
            check_disk(folder)
    except OSError as error:
        return f"{folder} can't be written to: {error.strerror or error}"
    try:
        check_network(meet)
    except OSError as error:
        return f"{meet} on the job's first node is not reached: {error.strerror or error}"
    try:
        check_gpus(gpus)
    except Exception as error:  # any: drivers fail in many ways
        return f"GPU: {(str(error) or type(error).__name__).splitlines()[0]}"
    return ""


def check_disk(folder: Path) -> None:
    """Write a file with fsync and read it back; raises OSError."""
    data = os.urandom(PROBE_BYTES)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".node-check-") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        if file.read() != data:
            raise OSError("reads back other bytes than were written")


def check_network(meet: str) -> None:
    """Connect to HOST:PORT; raises OSError."""
    host, _, port = meet.rpartition(":")
    socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def check_gpus(count: int) -> None:
    """Compute on each of ``count`` GPUs; raises RuntimeError."""
    if not count:
        return
    import torch

    if torch.cuda.device_count() < count:
        raise RuntimeError(f"{torch.cuda.device_count()} of {count} answer")
    for number in range(count):
        ones = torch.ones(1024, 1024, device=f"cuda:{number}")
        if (ones @ ones).sum().item() != 1024**3:
            raise RuntimeError(f"number {number} computes wrong sums")


if __name__ == "__main__":
    main()
