"""``status.json`` of a run, and what the run is really doing: a killed process can't write that it was killed.

::

    {"status": "running", "step": 400, "steps": 10000, "samples": 409600, "part": "", "reason": "",
     "time": "2026-03-01T12:00:00+00:00", "started": ..., "host": "n03", "pid": 4711, "pid_start": "81734",
     "machine": ..., "job": "1234", "begun": "2026-02-20T...", "restarts": 2, "last_restart": "n03: task 5: killed"}

It is written at the start, at every log step, at every save, and at the end. For an evaluation, steps are its finished
parts, and ``part`` is the current one.
"""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from shards.files.atomic import age
from shards.files.lock import STALE_S, silence
from shards.files.processes import ProcessId
from shards.files.untrusted import read_json_value

Status = Literal["running", "stopped", "interrupted", "complete", "failed"]
"""``stopped``: asked to stop, and saved; ``interrupted``: asked to stop before there was anything to save."""

STATUS_FILE, LOCK_FILE = "status.json", "run.lock"


@dataclass(frozen=True)
class RunRecord:
    """The content of ``status.json``; files of older versions have the first three fields only.

    Attributes:
        part: current part of an evaluation, and its progress.
        reason: why the run failed or was interrupted, in one line.
        time, started: when the record was written and the process started, ISO 8601.
        pid_start, machine: see ProcessId.
        job: ID of the Slurm job.
        begun: when the run's first process started.
        restarts: number of restarts within jobs, see restarts.py.
        last_restart: host, cause and lost steps of the last one.
    """

    status: str
    step: int = 0
    steps: int = 0
    samples: int = 0
    part: str = ""
    reason: str = ""
    time: str = ""
    started: str = ""
    host: str = ""
    pid: int = 0
    pid_start: str = ""
    machine: str = ""
    job: str = ""
    begun: str = ""
    restarts: int = 0
    last_restart: str = ""

    @classmethod
    def of_this_process(cls) -> "RunRecord":
        process = ProcessId.own()
        job = os.environ.get("SLURM_JOB_ID", "")
        started = now()
        return cls(
            "running",
            started=started,
            begun=started,
            host=process.host,
            pid=process.pid,
            pid_start=process.start,
            machine=process.machine,
            job=job,
        )

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.host, self.pid, self.pid_start, self.machine)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def now() -> str:
    """Return the current time in the format of records."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of a run folder; None if it is missing or damaged."""
    try:
        values = read_json_value((folder / STATUS_FILE).read_bytes())
        known = {field.name: values[field.name] for field in fields(RunRecord) if field.name in values}
        record = RunRecord(**known)
        if all(type(value) is type(getattr(_EMPTY, name)) for name, value in known.items()):
            return record
    except (OSError, ValueError, TypeError):
        pass
    return None


_EMPTY = RunRecord("")


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        condition: its status. A run whose status is ``running`` may be ``suspended`` by a signal, ``dead``, or
            ``silent`` on another host; ``unknown`` without a readable ``status.json``.
        record: the content of ``status.json``.
        heard: seconds since the last record.
        silence: seconds since the last record or heartbeat of the lock.
    """

    condition: str
    record: RunRecord
    heard: float
    silence: float

    def __str__(self) -> str:
        record = self.record
        if self.condition == "unknown":
            return "unknown: no readable status.json"
        where = f", step {record.step} of {record.steps}" + (f" ({record.part})" if record.part else "")
        process = f"process {record.pid} on {record.host}" + (f", job {record.job}" if record.job else "")
        if self.condition == "running":
            return f"running{where}, last heard of {_ago(self.heard)} ago ({process})"
        if self.condition == "suspended":
            woken = f"resume it with kill -CONT {record.pid}"
            return f"suspended by a signal ({woken}){where}, last heard of {_ago(self.heard)} ago ({process})"
        if self.condition == "dead":
            cause = (
                f"its process {record.pid} no longer runs on this host"
                if record.pid
                else "status.json says running, but nothing holds its lock"
            )
            return f"dead: {cause}{where}, last heard of {_ago(self.heard)} ago: run the same command again"
        if self.condition == "silent":
            return f"silent: no sign of life for {_ago(self.silence)}{where} ({process}): dead, hung or disconnected"
        return f"{record.status}{where}" + (f": {record.reason}" if record.reason else "")


def run_state(folder: Path) -> RunState:
    """Return the state of the run in a folder, from its record, its lock, and its process if that is on this host."""
    record = read_record(folder)
    if record is None:
        return RunState("unknown", _EMPTY, 0.0, 0.0)
    heard = silent_for = 0.0
    with suppress(OSError):  # written anew at this moment
        heard = silent_for = max(0.0, age(folder / STATUS_FILE))  # `time` in the record is by another host's clock
    with suppress(OSError):
        silent_for = min(heard, silence(folder / LOCK_FILE))
    return RunState(_condition(record, silent_for), record, heard, silent_for)


def _condition(record: RunRecord, silent_for: float) -> str:
    if record.status != "running":
        return record.status
    if not record.pid:  # of a version that wrote no process
        return "running" if silent_for <= STALE_S else "dead"
    state = record.process.state()
    if state == "elsewhere":
        return "running" if silent_for <= STALE_S else "silent"
    return {"alive": "running", "suspended": "suspended", "gone": "dead"}[state]


def _ago(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
