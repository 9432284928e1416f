"""The folder of a run: one run at a time in it, its state for scripts, and room for its checkpoints."""

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import IO, Literal

from pretrain.sections.run import CheckpointConfig
from shards.atomic import write_atomic
from shards.errors import ConfigError

Status = Literal["running", "stopped", "complete", "failed"]


class RunFolder:
    """Rank 0's hold on a run folder.

    Args:
        path: made where it is missing.
        patience: seconds to wait for a run in it that is about to end.

    Raises:
        ConfigError: it can't be written, or another run is at work in it.
    """

    def __init__(self, path: Path, patience: float = 15.0) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._pid = _lock(path / "rank0.pid", time.monotonic() + patience)
        except OSError as error:
            raise ConfigError(f"key 'run.dir': {path}: can't be written: {error.strerror}") from None

    def tell(self, status: Status, step: int, steps: int) -> None:
        """Write ``status.json``: launchers change exit codes, this file doesn't."""
        write_atomic(self.path / "status.json", json.dumps({"status": status, "step": step, "steps": steps}) + "\n")

    def check_room(self, config: CheckpointConfig, checkpoint_bytes: int, steps: int) -> None:
        """Raise ConfigError where the checkpoints that the run will hold at once don't fit disk or quota."""
        held = held_at_once(config, steps)
        need = held * checkpoint_bytes
        there = sum(path.stat().st_size for path in self.path.glob("checkpoints/step-*/*"))
        limits = {"are free there": shutil.disk_usage(self.path).free + there}
        if config.quota_gb is not None:
            limits["are allowed by 'checkpoint.quota_gb'"] = config.quota_gb * 10**9
        for what, room in limits.items():
            if need > room:
                raise ConfigError(
                    f"{self.path}: {held} checkpoints of {checkpoint_bytes / 1e9:.2f} GB need {need / 1e9:.1f} GB, "
                    f"{room / 1e9:.1f} GB {what}: lower checkpoint.keep, raise checkpoint.keep_every, or choose "
                    "another run.dir"
                )


def held_at_once(config: CheckpointConfig, steps: int) -> int:
    """Checkpoints that a run of so many steps has on disk at most: those kept, and the one being written."""
    return config.keep + (steps // config.keep_every if config.keep_every else 0) + 1


def _lock(path: Path, until: float) -> IO[str]:
    """Hold ``path``, with this process's number in it, until the process ends."""
    file = open(path, "a+", encoding="utf-8")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                file.seek(0)
                raise ConfigError(
                    f"key 'run.dir': {path.parent}: another run is at work there (process {file.read().strip()}): "
                    "stop it, or choose another run.dir"
                ) from None
            time.sleep(0.2)
        except OSError:
            break  # a file system without locks
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
