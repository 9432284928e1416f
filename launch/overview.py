"""`launch/slurm.py status RUN` and `logs RUN`: where a run is, how fast, what it lost, and what its job prints."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from launch.jobs import SlurmError, run_slurm
from pretrain.console import duration
from pretrain.metrics.json_lines import METRICS_FILE, read_records
from pretrain.resilience.restarts import failures_by_host, read_restarts
from pretrain.resilience.status import RunRecord, run_state
from shards.errors import ConfigError
from shards.files.atomic import age

BAD = ("failed", "dead", "silent", "unknown")
"""States in which `status` ends with exit code 1."""


@dataclass(frozen=True)
class Speed:
    """The training speed of a run.

    Attributes:
        tiles_per_second: at the last log step.
        trained: seconds that the steps of the run took, without those that were lost.
    """

    tiles_per_second: float
    trained: float


def show_status(folder: Path) -> int:
    """Print the state of a run, and return 1 if it failed, or is dead or silent."""
    _check(folder)
    state = run_state(folder)
    print(f"run       {folder}: {state}")
    for title, text in _lines(folder, state.record):
        print(f"{title:<9} {text}")
    return int(state.condition in BAD)


def show_logs(folder: Path, lines: int, follow: bool) -> int:
    """Print the end of the newest output of a run's jobs."""
    _check(folder)
    paths = sorted((folder / "slurm").glob("*.out"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise ConfigError(f"{folder}/slurm: no output of a job yet: is the job still pending? squeue --me")
    print(f"{paths[-1]}:", flush=True)
    if follow:
        os.execvp("tail", ["tail", "-n", str(lines), "-F", str(paths[-1])])
    text = paths[-1].read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    print("\n".join(text))
    return 0


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder: name the run.dir of a run")


def _lines(folder: Path, record: RunRecord) -> Iterator[tuple[str, str]]:
    if record.job:
        yield "job", f"{record.job}: {job_state(record.job)}"
    speed = measure_speed(folder / METRICS_FILE, record)
    if speed is not None:
        yield "speed", _describe_speed(speed, record)
    if speed is not None and record.begun:
        wall = _moment(record.time) - _moment(record.begun)
        yield "goodput", f"{speed.trained / max(wall, 1e-9):.0%} of {duration(wall)} since the first start trained"
    restarts = read_restarts(folder)
    if restarts:
        yield "restarts", f"{len(restarts)}; the last one: {record.last_restart or restarts[-1]}"
        hosts = failures_by_host(restarts).most_common(8)
        yield "failures", ", ".join(f"{host} {count}" for host, count in hosts) or "of no known node"
    saved = [path for path in (folder / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    if saved:
        newest = max(saved)
        yield "last save", f"{newest.name}, {duration(age(newest))} ago ({len(saved)} kept)"


def _describe_speed(speed: Speed, record: RunRecord) -> str:
    batch = record.samples / record.step
    text = f"{speed.tiles_per_second:.1f} tiles/s, {batch / speed.tiles_per_second:.3g} s per step"
    if record.status == "running":
        left = (record.steps - record.step) * batch / speed.tiles_per_second
        text += f"; ETA {duration(left)}, {datetime.fromtimestamp(time.time() + left).isoformat(' ', 'minutes')}"
    return text


def measure_speed(path: Path, record: RunRecord) -> Speed | None:
    """Return a run's speed from ``metrics.jsonl``; None before the first log step."""
    if not path.exists() or not record.step:
        return None
    batch, step, trained, rate = record.samples / record.step, 0, 0.0, 0.0
    for values in read_records(path):
        if values.get("tiles_per_second"):
            rate = float(values["tiles_per_second"])
            trained += (values["step"] - step) * batch / rate
            step = values["step"]
    return Speed(rate, trained) if rate else None


def job_state(job: str) -> str:
    """Return Slurm's line on a job and the nodes of its running steps; why it is unknown if Slurm doesn't say."""
    try:
        found = run_slurm("squeue", "-h", "-j", job, "-o", "%T on %N, %M of %l (%r)")
        steps = run_slurm("squeue", "--steps", "-h", "-j", job, "-o", "%j on %N")
    except SlurmError as error:
        return str(error)
    if not found.stdout.strip():
        return "not in the queue"
    line = re.sub(r" \(None\)$", "", found.stdout.strip().splitlines()[-1]).replace(" on ,", ",")
    ranks = [step for step in steps.stdout.splitlines() if not step.startswith("batch ")]
    return line + (f"; running: {'; '.join(ranks)}" if ranks else "")


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).astimezone(UTC).timestamp()
