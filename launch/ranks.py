"""The rank of this process, from the environment of its launcher or of Slurm. Nothing heavy is imported."""

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress


def adopt_slurm_ranks() -> None:
    """In a task of `srun`, set RANK, WORLD_SIZE and LOCAL_RANK, unless a launcher inside it has set them."""
    if "RANK" not in os.environ:
        os.environ.update(slurm_ranks(os.environ))


def slurm_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the ranks of a task of a step; empty in a batch script or `salloc` shell, which are not tasks."""
    if "SLURM_STEP_NUM_TASKS" not in environment or "SLURM_PROCID" not in environment:
        return {}
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    return {name: environment[slurm] for name, slurm in names.items()}


def is_main_process() -> bool:
    """Return whether this is rank 0; works before a process group exists."""
    return int(os.environ.get("RANK", slurm_ranks(os.environ).get("RANK", "0"))) == 0


def set_rendezvous() -> None:
    """Set missing rendezvous variables, for a Slurm step or a single process."""
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(_free_port())
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        if "MASTER_ADDR" not in os.environ:  # asking Slurm from every rank would load its controller
            os.environ["MASTER_ADDR"] = _first_address(os.environ["SLURM_STEP_NODELIST"])
        os.environ.setdefault("MASTER_PORT", str(step_port(os.environ["SLURM_JOB_ID"], os.environ["SLURM_STEP_ID"])))
    interface = interface_towards(os.environ.get("MASTER_ADDR", ""))
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_towards(host: str) -> str:
    """Return the name of this machine's network interface on the way to ``host``; empty if unknown, or on this machine.

    gloo would listen at the address that the machine's own name has, which on Debian is 127.0.1.1, and on a machine
    with several networks may be of another one.
    """
    import psutil

    try:
        family, *_, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return ""
    names = [name for name, addresses in psutil.net_if_addrs().items() if own in [each.address for each in addresses]]
    return names[0] if names and names[0] != "lo" else ""


def step_port(job: str, step: str) -> int:
    """Return a port in 20000 to 31999 that all tasks of a step agree on and neighboring jobs don't share."""
    return 20000 + (int(job) * 7 + int(step)) % 12000


def _first_address(nodes: str) -> str:
    """Return the address at which Slurm reaches the first node of a list; its name if scontrol does not work here."""
    first = first_node(nodes)
    try:
        words = _scontrol("show", "node", first, "-o").split()
        return next(word.removeprefix("NodeAddr=") for word in words if word.startswith("NodeAddr="))
    except (OSError, subprocess.SubprocessError, StopIteration):  # for example in a container
        return first


def first_node(nodes: str) -> str:
    """Return the first node of Slurm's list: ``"n03"`` of ``"n[03-05,9],m1"``."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True, timeout=30).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_job_port(job: str, attempt: int = 0) -> int:
    """Return a free port of this machine for a job: the one derived from its number, or the next free one.

    Args:
        attempt: number of an attempt within the job; ranks left from the one before may still hold its port.
    """
    first = step_port(job, str(attempt))
    for port in (*range(first, 32000), *range(20000, first)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError("no port between 20000 and 31999 is free")
