"""What is checked before anything is queued or run: inputs are there, and nobody is at work in a run's folder.

A file that is missing costs a day in the queue otherwise.
"""

import argparse
import fcntl
import json
import re
import shutil
import socket
from pathlib import Path

from finetune.config import FinetuneConfig
from launch.jobs import Job, SlurmError, run_slurm
from launch.sweeps import Run
from shards.errors import ConfigError, ForgeError
from shards.manifest import read_manifest

INPUTS = ("root", "images", "labels", "splits", "statistics", "pretraining")
"""Keys of an evaluation's ``data`` that name files or folders."""


def check_slurm() -> None:
    """Raise SlurmError where this machine submits to no Slurm."""
    if shutil.which("sbatch") is None:
        raise SlurmError(
            "sbatch is missing: run this on a login node of the cluster, use --dry-run to see the scripts, or --local "
            "to run without Slurm"
        )


def check_inputs(arguments: argparse.Namespace, runs: list[Run]) -> None:
    """Raise ConfigError where a file or folder that the runs read is missing; places behind URLs are not asked."""
    if arguments.setup and not Path(arguments.setup).is_file():
        raise ConfigError(f"--setup {arguments.setup}: no such file")
    for run in runs:
        data = run.config.data
        if isinstance(run.config, FinetuneConfig):
            wanted = {f"data.{key}": getattr(data, key) for key in INPUTS}
            if arguments.command == "finetune":  # a pipeline makes its checkpoint itself
                wanted["checkpoint"] = run.config.checkpoint
            for key, path in wanted.items():
                if path is not None and not _is_url(path) and not Path(path).exists():
                    raise ConfigError(f"{run.file}: key '{key}': {path}: no such file or folder; correct the path")
        if arguments.command != "pipeline" and data.shards is not None and not _is_url(data.shards):
            try:
                read_manifest(Path(data.shards))
            except ForgeError as error:
                raise ConfigError(f"{run.file}: key 'data.shards': {error}") from None


def check_free(runs: list[Run]) -> None:
    """Raise ConfigError where a process of this machine or file system is at work in a run's folder."""
    for run in runs:
        lock = run.folder / "rank0.pid"
        try:
            with open(lock, encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            where = _status(run.folder).get("host", socket.gethostname())
            process = lock.read_text(encoding="utf-8", errors="replace").strip()
            raise ConfigError(
                f"key 'run.dir': {run.folder}: another run is at work there (process {process} on {where}): stop it, "
                "or choose another run.dir"
            ) from None
        except OSError:  # no run yet, or a file system without locks
            continue


def check_queue(jobs: list[Job], runs: list[Run]) -> None:
    """Raise ConfigError where a job in the queue works in a run's folder, or an array is too long for this Slurm."""
    queued = {}
    for line in run_slurm("squeue", "--me", "-h", "-o", "%A|%T|%o").stdout.splitlines():
        number, state, script = (*line.split("|", 2), "", "")[:3]
        queued[script.strip()] = queued[number] = (number, state)
    for job in jobs:
        _refuse_queued(job.script.parent.parent, queued.get(str(job.script)))
    for run in runs:
        status = _status(run.folder)
        if status.get("status") == "running":
            _refuse_queued(run.folder, queued.get(str(status.get("job"))))
    limit = _array_limit()
    for job in jobs:
        if limit and job.elements > limit:
            raise SlurmError(
                f"{job.stage}: an array of {job.elements}, and this Slurm takes {limit} (MaxArraySize): sweep less at "
                "a time"
            )


def _refuse_queued(folder: Path, found: tuple[str, str] | None) -> None:
    if found is not None:
        job, state = found
        raise ConfigError(
            f"key 'run.dir': {folder} belongs to job {job}, which is {state}: wait for it, cancel it (scancel {job}), "
            "or choose another run.dir"
        )


def _array_limit() -> int:
    """Runs that an array may have; 0 where Slurm doesn't say."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", run_slurm("scontrol", "show", "config").stdout, re.MULTILINE)
    return int(match[1]) if match else 0


def _status(folder: Path) -> dict:
    """What a run says of itself; empty where it says nothing."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _is_url(path: str) -> bool:
    return "://" in path
