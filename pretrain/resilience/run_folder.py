"""The folder of a run: locked by one run at a time, with its status for scripts and room for its checkpoints."""

import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.config.run import CheckpointConfig
from pretrain.resilience.notify import notify
from pretrain.resilience.status import LOCK_FILE, STATUS_FILE, RunRecord, Status, now, read_record, run_state
from shards.errors import ConfigError, ForgeError
from shards.files.atomic import sweep, temporary_path, write_atomic
from shards.files.journal import BestEffort
from shards.files.lock import Lock, holder, silence
from shards.files.processes import ProcessId, host_name
from shards.files.system_errors import MACHINE, error_text, remedy

if TYPE_CHECKING:
    from pretrain.resilience.watchdog import Watchdog

KEPT = ("step", "steps", "samples", "restarts", "last_restart")
"""Fields of ``status.json`` that a new process takes over from the last one."""
SEEN_S = 60.0
"""Seconds until a host sees a file of another one: NFS clients believe so long that a file is missing (acdirmax)."""
RECORD_S = 5.0
"""Seconds between two records of an evaluation's progress."""


class RunTaken(ForgeError):
    """The folder is no longer this run's: another run has taken it over, or it is gone."""

    exit_code = 1


class RunFolderNotWritten(ConfigError):
    """The folder's file system is full, read-only or broken: another key would not help."""

    exit_code = 1


class RunFolder:
    """A run's hold on its folder; every rank has one, and rank 0's is the lock.

    Args:
        path: created if it is missing.
        patience: seconds to wait for another run in it to end.
        leader: on ranks other than 0, the record that rank 0's RunFolder began with; None locks the folder.
        notify_target: command or URL that is notified of the run's events.

    Attributes:
        record: the content of ``status.json``, even if it could not be written.
        previous: its content before this process; None if there was none, and on ranks other than 0.

    Raises:
        ConfigError: the folder can't be written, or another run is at work in it.
        RunFolderNotWritten: its file system is full, read-only or broken.
    """

    def __init__(
        self, path: Path, patience: float = 15.0, leader: RunRecord | None = None, notify_target: str | None = None
    ) -> None:
        self.path, self._notify = path, notify_target
        self._lock: Lock | None = None
        self._effort = BestEffort(path / STATUS_FILE)
        self.record = leader or RunRecord.of_this_process()
        self.previous: RunRecord | None = None
        self._written, self._released = 0.0, False
        if leader is None:
            try:
                path.mkdir(parents=True, exist_ok=True)
                self._lock = _hold(path, patience)
                write_atomic(path / "rank0.pid", str(os.getpid()))
                sweep(path, f"{STATUS_FILE}.*")
            except OSError as error:
                kind = RunFolderNotWritten if error.errno in MACHINE else ConfigError
                why = f"{error_text(error)} on {host_name()}: {remedy(error, path)}"
                raise kind(f"key 'run.dir': {path}: can't be written: {why}") from None
            self.previous = read_record(path)
            if self.previous is not None:
                kept = {name: getattr(self.previous, name) for name in KEPT}
                self.record = replace(self.record, **kept, begun=self.previous.begun or self.record.begun)
            self._write(self.record)

    def write_status(
        self, status: Status, step: int, steps: int, samples: int = 0, part: str | None = None, reason: str = ""
    ) -> None:
        """Write ``status.json``; only rank 0 calls it. Launchers change exit codes, this file tells the truth.

        Args:
            part: current part of an evaluation; None keeps the last one.
        """
        record = replace(self.record, status=status, step=step, steps=steps, samples=samples, reason=reason)
        self._write(record if part is None else replace(record, part=part))
        if status != "running":
            notify(self._notify, status, self.path, self.record, reason)

    def record_restarts(self, count: int, last: str) -> None:
        """Write how often the run was restarted within its jobs and why the last time, and notify the user."""
        self._write(replace(self.record, restarts=count, last_restart=last))
        notify(self._notify, "restarted", self.path, self.record, last)

    def report_progress(self, part: str | None = None, samples: int | None = None, at_once: bool = False) -> None:
        """Record the progress of an evaluation within a part; every rank may call it at any time, rank 0 writes.

        Args:
            part, samples: None keeps the last ones.
            at_once: write even if the last record is younger than ``RECORD_S``.
        """
        if self._lock is not None and (at_once or time.monotonic() - self._written > RECORD_S):
            record = self.record if part is None else replace(self.record, part=part)
            self._write(record if samples is None else replace(record, samples=samples))

    def end(self, status: Status, reason: str) -> None:
        """Record why the run ended, unless its end is recorded already: the first rank that fails knows why.

        Any rank and any thread may call it.
        """
        record = read_record(self.path) or self.record
        if record.process == self.record.process and record.status == "running":
            last = record if record.step > self.record.step or self._lock is None else self.record
            self._write(replace(last, status=status, reason=" ".join(reason.split())[:1600]))
            if status != "running":
                notify(self._notify, status, self.path, self.record, self.record.reason)

    def check_held(self) -> None:
        """Raise RunTaken if another run has taken the folder over, or if the folder or its lock is gone."""
        if self._lock is None or self._lock.is_held():
            return
        if not self.path.is_dir():
            raise RunTaken(
                f"{self.path}: the run folder is gone on {host_name()} (removed, renamed, or its file system "
                "unmounted): nothing more is saved; put it back, and run the command again"
            )
        taker = holder(self.path / LOCK_FILE)
        if not taker:
            raise RunTaken(
                f"{self.path / LOCK_FILE}: removed while the run was at work, so another run may begin here: nothing "
                "more is saved; see that none has, and run the command again"
            )
        raise RunTaken(
            f"{self.path}: another run ({taker}) took over the folder while this one was suspended: nothing more is "
            "saved here; stop one of the two, and run the command again"
        )

    @property
    def is_lost(self) -> bool:
        """Whether the folder is no longer this run's, as of the last heartbeat; `check_held` tells why."""
        return self._lock is not None and self._lock.is_lost

    def release(self) -> None:
        """Leave the folder to the next run."""
        if self._lock is not None:
            self._released = True
            self._lock.release()

    def _write(self, record: RunRecord) -> None:
        """Write by rename, without fsync: this happens at every log step."""
        self.record, self._written = replace(record, time=now()), time.monotonic()
        if self._lock is not None and not self._released and not self._lock.is_held():
            return  # the file is another run's
        with self._effort:
            temporary = temporary_path(self.path / STATUS_FILE)
            try:
                temporary.write_text(json.dumps(self.record.to_dict()) + "\n", encoding="utf-8")
                os.replace(temporary, self.path / STATUS_FILE)
            except OSError:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise

    def check_room(self, config: CheckpointConfig, checkpoint_bytes: int, steps: int) -> None:
        """Raise ConfigError if the checkpoints that the run will keep at once don't fit the disk or the quota."""
        held = held_at_once(config, steps)
        need = held * checkpoint_bytes
        held_bytes = sum(path.stat().st_size for path in self.path.glob("checkpoints/step-*/*"))
        checkpoints = self.path / "checkpoints"  # may be a link to another file system
        disk = shutil.disk_usage(checkpoints if checkpoints.exists() else self.path)
        limits = {"are free there": disk.free + held_bytes}
        if config.quota_gb is not None:
            limits["are allowed by 'checkpoint.quota_gb'"] = config.quota_gb * 10**9
        for what, room in limits.items():
            if need > room:
                raise ConfigError(
                    f"{self.path}: {held} checkpoints of {checkpoint_bytes / 1e9:.2f} GB need {need / 1e9:.1f} GB, "
                    f"{room / 1e9:.1f} GB {what}: lower checkpoint.keep, raise checkpoint.keep_every, or choose "
                    "another run.dir"
                )


def open_run(path: Path, watchdog: "Watchdog", notify_target: str | None = None) -> RunFolder:
    """Open and lock a run's folder; every rank calls it. The watchdog then records there how the run ends.

    Args:
        notify_target: see RunFolder.

    Raises:
        ConfigError: on every rank, see RunFolder.
        HostError: on every rank, if a host does not see the folder that rank 0 has locked.
    """
    from pretrain import distributed

    run_folder = distributed.raise_on_all_ranks(
        lambda: RunFolder(path, notify_target=notify_target) if distributed.is_main() else None
    )
    leader = distributed.broadcast_object(None if run_folder is None else run_folder.record)
    watchdog.run = run_folder or RunFolder(path, leader=leader, notify_target=notify_target)
    distributed.raise_on_all_hosts(lambda: _check_seen(path, leader))
    return watchdog.run


def held_at_once(config: CheckpointConfig, steps: int) -> int:
    """Return the most checkpoints that a run of ``steps`` steps has on disk: those kept, and the one being written."""
    return config.keep + (steps // config.keep_every if config.keep_every else 0) + 1


def _hold(folder: Path, patience: float) -> Lock:
    """Acquire the folder's lock.

    A holder on another host is waited for until it shows that it is alive, or has been silent for so long that it
    counts as dead.
    """
    path = folder / LOCK_FILE
    lock = Lock(path, from_living=False)
    begin, announced = time.monotonic(), False
    while not lock.acquire():
        waited = time.monotonic() - begin
        if waited > patience and _lives(path, waited):
            process = holder(path).partition(" ")[2] or "unknown"
            raise ConfigError(
                f"key 'run.dir': {folder}: another run is at work there (process {process}): {run_state(folder)}: "
                "stop it, or choose another run.dir"
            )
        if waited > 3 and not announced:
            announced = True
            print(f"{folder}: waiting for {holder(path)}, which holds it: {run_state(folder)}", flush=True)
        time.sleep(0.2)
    return lock


def _check_seen(path: Path, leader: RunRecord) -> None:
    """Raise ConfigError if this host does not see the lock of rank 0: the folder here is another one, or none."""
    until = time.monotonic() + SEEN_S
    while not holder(path / LOCK_FILE).startswith(f"{leader.host} {leader.pid}"):
        if time.monotonic() > until:
            raise ConfigError(
                f"key 'run.dir': {path}: not the folder that rank 0 on {leader.host} has: is its file "
                "system mounted here?"
            )
        time.sleep(0.2)


def _lives(path: Path, waited: float) -> bool:
    """Return whether a lock's holder is alive: its process exists here, or it sent a heartbeat since the wait began."""
    try:
        state = ProcessId.parse(path.read_text()).state()
        return state in ("alive", "suspended") or silence(path) < waited
    except (OSError, ValueError):
        return False
