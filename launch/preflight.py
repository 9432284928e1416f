"""Checks before anything is queued or run: inputs exist, and no other run uses a run folder.

Without them, a missing file would be noticed only after a day in the queue.
"""

import argparse
import re
import shutil
from pathlib import Path

from finetune.config import FinetuneConfig, LabeledDataConfig
from launch.jobs import Job, SlurmError, run_slurm
from launch.sweeps import Run
from pretrain.config.data import DataConfig
from pretrain.resilience.status import read_record, run_state
from shards.errors import ConfigError, ForgeError
from shards.format.manifest import read_manifest

INPUTS = ("root", "images", "labels", "splits", "statistics", "pretraining")
"""Keys of an evaluation's ``data`` that name files or folders."""


def check_slurm() -> None:
    """Raise SlurmError if sbatch is missing on this machine."""
    if shutil.which("sbatch") is None:
        raise SlurmError(
            "sbatch is missing: run this on a login node of the cluster, use --dry-run to see the scripts, or --local "
            "to run without Slurm"
        )


def check_inputs(arguments: argparse.Namespace, runs: list[Run]) -> None:
    """Raise ConfigError if a file or folder that the runs read is missing; URLs are not checked."""
    if arguments.setup and not Path(arguments.setup).is_file():
        raise ConfigError(f"--setup {arguments.setup}: no such file")
    for run in runs:
        data = run.config.data
        if isinstance(run.config, FinetuneConfig):
            paths = {f"data.{key}": getattr(data, key) for key in INPUTS}
            if arguments.command == "finetune":  # a pipeline creates its own checkpoint
                paths["checkpoint"] = run.config.checkpoint
        elif (run.folder / "checkpoints").exists():  # resumes from there
            paths = {}
        else:
            paths = {"init": run.config.init}
        for key, path in paths.items():
            if path is not None and not _is_url(path) and not Path(path).exists():
                raise ConfigError(f"{run.file}: key '{key}': {path}: no such file or folder; correct the path")
        for key, shards in _shards_of(data).items() if arguments.command != "pipeline" else ():
            try:
                read_manifest(Path(shards))
            except ForgeError as error:
                raise ConfigError(f"{run.file}: key '{key}': {error}") from None


def _shards_of(data: DataConfig | LabeledDataConfig) -> dict[str, str]:
    """Return the folders of shards that a run reads, by key; not URLs."""
    shards = {"data.shards": data.shards}
    if isinstance(data, DataConfig):
        shards |= {f"data.sources.{number}.shards": source.shards for number, source in enumerate(data.sources)}
    return {key: path for key, path in shards.items() if path is not None and not _is_url(path)}


def check_free(runs: list[Run]) -> None:
    """Raise ConfigError if another run uses a run's folder, on this machine or another."""
    for run in runs:
        state = run_state(run.folder)
        if state.condition in ("running", "suspended"):
            raise ConfigError(
                f"key 'run.dir': {run.folder}: another run is at work there ({state}): stop it, or choose another "
                "run.dir"
            )


def check_queue(jobs: list[Job], runs: list[Run]) -> None:
    """Raise ConfigError if a queued job uses a run's folder, or an array exceeds this Slurm's limit."""
    queued = {}
    for line in run_slurm("squeue", "--me", "-h", "-o", "%A|%T|%o").stdout.splitlines():
        number, state, script = (*line.split("|", 2), "", "")[:3]
        queued[script.strip()] = queued[number] = (number, state)
    for job in jobs:
        _refuse_queued(job.script.parent.parent, queued.get(str(job.script)))
    for run in runs:
        record = read_record(run.folder)
        if record is not None and record.status == "running" and record.job:
            _refuse_queued(run.folder, queued.get(record.job))
    limit = _array_limit()
    for job in jobs:
        if limit and job.elements > limit:
            raise SlurmError(
                f"{job.stage}: an array of {job.elements}, but this Slurm allows {limit} (MaxArraySize): split the "
                "sweep"
            )


def _refuse_queued(folder: Path, found: tuple[str, str] | None) -> None:
    if found is not None:
        job, state = found
        raise ConfigError(
            f"key 'run.dir': {folder} belongs to job {job}, which is {state}: wait for it, cancel it (scancel {job}), "
            "or choose another run.dir"
        )


def _array_limit() -> int:
    """Return the maximum array size that Slurm accepts; 0 if unknown."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", run_slurm("scontrol", "show", "config").stdout, re.MULTILINE)
    return int(match[1]) if match else 0


def _is_url(path: str) -> bool:
    return "://" in path
