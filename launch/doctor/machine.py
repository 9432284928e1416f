"""The hosts of a run: one GPU of the same kind per rank, and enough cores, shared memory and open files."""

import os
import resource
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from launch.doctor.cluster import Cluster, values
from launch.doctor.table import Row, State, worst

SHM = Path("/dev/shm")
SHM_BYTES = 1 << 30
"""Shared memory that NCCL's documentation requires in containers; Docker's 64 MiB are too few for a full node."""

OPEN_FILES = 4096
"""The reader keeps up to a quarter of the limit open, one file per shard; beyond that it reopens files repeatedly."""

MEMORY_SHARE = 0.95
"""Fraction of a GPU's memory that must be free: a leftover process takes more than the rest."""

DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Host:
    """One rank's view: usable cores, torch's threads, bytes of /dev/shm, open-file limit, tasks of a Slurm step."""

    cores: frozenset[int]
    threads: int
    shm_bytes: int
    open_files: int
    slurm_tasks: int


@dataclass(frozen=True)
class Gpu:
    """One rank's device, sizes in bytes; ``number`` is its UUID."""

    name: str
    memory: int
    free: int
    number: str


def check_launcher(cluster: Cluster) -> Row:
    """Check that the launched processes fit on the hosts."""
    answers = cluster.everywhere(_look_at_host)
    failure = cluster.failure(answers)
    if failure:
        return Row("red", failure, "a Linux host with /dev/shm")
    return judge_hosts(values(answers), cluster.hosts, torch.cuda.is_available())


def judge_hosts(ranks: Sequence[Host], hosts: Sequence[str], on_gpu: bool) -> Row:
    """Return the row for the resources that the ranks see on their hosts."""
    problems: list[tuple[State, str, str]] = []
    for host in dict.fromkeys(hosts):
        on_host = [rank for rank, name in zip(ranks, hosts, strict=True) if name == host]
        cores = len(frozenset[int]().union(*(rank.cores for rank in on_host)))
        threads = sum(rank.threads for rank in on_host)
        if threads > cores:
            what = f"{host}: {threads} threads on {cores} cores slow each other down"
            problems.append(("red", what, f"run.threads={max(cores // len(on_host), 1)}, or --cpus-per-task"))
        if on_gpu and len(on_host) > 1 and on_host[0].shm_bytes < SHM_BYTES:
            what = f"{host}: /dev/shm has {on_host[0].shm_bytes / 2**20:.0f} MiB, but NCCL needs 1024"
            problems.append(("yellow", what, "docker run --shm-size=1g"))
        if on_host[0].open_files < OPEN_FILES:
            what = f"{host}: {on_host[0].open_files} open files allowed"
            problems.append(("yellow", what, f"ulimit -Hn {OPEN_FILES} or more"))
    if len(ranks) < max(rank.slurm_tasks for rank in ranks):
        what = f"srun started {ranks[0].slurm_tasks} tasks, but only {len(ranks)} found each other"
        problems.append(("red", what, "one launcher: `srun python -m ...` without RANK in the environment"))
    first = ranks[0]
    processes = sum(host == hosts[0] for host in hosts)
    found = (
        f"{processes} processes x {first.threads} threads on {hosts[0]} with {len(first.cores)} cores per process, "
        f"/dev/shm {first.shm_bytes / 2**20:.0f} MiB, {first.open_files} open files"
    )
    return Row(
        worst(*(state for state, _, _ in problems)),
        "; ".join([found, *(what for _, what, _ in problems)]),
        "; ".join(dict.fromkeys(fix for _, _, fix in problems)),
    )


def check_gpus(cluster: Cluster) -> Row:
    """Check that every rank has its own device, all of the same kind, with free memory."""
    answers = cluster.everywhere(_look_at_gpu)
    failure = cluster.failure(answers)
    if failure:
        return Row("red", failure, "nvidia-smi on that host; CUDA_VISIBLE_DEVICES; a driver as new as torch's CUDA")
    return judge_gpus([answer.value for answer in answers], [cluster.name(rank) for rank in range(cluster.size)])


def judge_gpus(gpus: Sequence[Gpu | None], names: Sequence[str]) -> Row:
    """Return the row for the devices of the ranks with these names."""
    if not any(gpus):
        return Row("yellow", "none: this would train on the CPU", "run the doctor on a node of the GPU partition")
    problems: list[tuple[State, str, str]] = []
    first, owners = gpus[0], dict[str, str]()
    for name, gpu in zip(names, gpus, strict=True):
        if gpu is None or first is None:
            lone = name if gpu is None else names[0]
            problems.append(("red", f"{lone} has no GPU, others have", "the same --gpus-per-task for every task"))
            continue
        if (gpu.name, gpu.memory >> 30) != (first.name, first.memory >> 30):
            what = f"{name} has {_describe(gpu)}, but {names[0]} has {_describe(first)}"
            problems.append(("red", what, "ask for one kind of GPU: --constraint or --gres=gpu:KIND:N"))
        if gpu.number in owners:
            what = f"{name} and {owners[gpu.number]} share one GPU"
            problems.append(("red", what, "as many processes per node as GPUs, each with its own LOCAL_RANK"))
        owners[gpu.number] = name
        if gpu.free < MEMORY_SHARE * gpu.memory:
            what = f"{name}: {(gpu.memory - gpu.free) / 2**30:.1f} GiB of its GPU are in use"
            problems.append(("yellow", what, "nvidia-smi names the process that uses it"))
    found = f"{sum(gpu is not None for gpu in gpus)} x {_describe(first)}" if first else "not on every rank"
    return Row(
        worst(*(state for state, _, _ in problems)),
        "; ".join([found, *(what for _, what, _ in problems)]),
        "; ".join(dict.fromkeys(fix for _, _, fix in problems)),
    )


def _describe(gpu: Gpu) -> str:
    return f"{gpu.name} of {gpu.memory / 2**30:.0f} GiB"


def _look_at_host() -> Host:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    return Host(
        cores=frozenset(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        shm_bytes=shutil.disk_usage(SHM).total,
        open_files=_most_open_files(),
        slurm_tasks=int(tasks),
    )


def _most_open_files() -> int:
    """Return the hard limit of open files; the reader raises the soft limit up to it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def _look_at_gpu() -> Gpu | None:
    if not torch.cuda.is_available():
        if DRIVER.exists():
            raise RuntimeError(f"an NVIDIA driver is installed, but torch {torch.__version__} finds no GPU")
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    free, memory = torch.cuda.mem_get_info(device)
    properties = torch.cuda.get_device_properties(device)
    return Gpu(properties.name, memory, free, str(properties.uuid))
