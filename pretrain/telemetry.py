"""What a run tells: TensorBoard, the same scalars as JSON lines, and one readable console line. Rank 0 only."""

import json
import os
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pretrain import distributed
from shards.atomic import write_atomic


def say(text: str) -> None:
    """A line on rank 0's console."""
    if distributed.is_main():
        print(text, flush=True)


class Telemetry:
    """Writers of a run; on other ranks than 0 every call does nothing.

    Args:
        folder: run folder; writes ``metrics.jsonl`` and ``tensorboard/``.
        first_step: records of later steps, left by a run that died after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = None
        if distributed.is_main():
            from torch.utils.tensorboard import SummaryWriter

            path = folder / "metrics.jsonl"
            _drop_after(path, first_step)
            self._lines = open(path, "a", encoding="utf-8")
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self._began = time.monotonic()

    def record(self, step: int, scalars: dict[str, float]) -> None:
        """One step's scalars, to TensorBoard and the JSON lines."""
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
            self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
            self._lines.flush()

    def picture(self, step: int, name: str, figure: Figure) -> None:
        if self._writer is not None:
            self._writer.add_figure(name, figure, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._lines.flush()
            os.fsync(self._lines.fileno())
            self._lines.close()


def _drop_after(path: Path, step: int) -> None:
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step(line) <= step]
        write_atomic(path, "".join(kept))


def _step(line: str) -> float:
    record: dict[str, Any] = json.loads(line)
    return record["step"]


class Clock:
    """Rates between two logged steps."""

    def __init__(self, step: int) -> None:
        self._step, self._time, self._waited = step, time.monotonic(), 0.0

    def lap(self, step: int, wait_seconds: float) -> tuple[float, float]:
        """(steps per second, share of the time spent waiting for data) since the last lap.

        Args:
            step: steps taken so far.
            wait_seconds: time spent waiting for data so far.
        """
        now = time.monotonic()
        seconds = max(now - self._time, 1e-9)
        rates = (step - self._step) / seconds, (wait_seconds - self._waited) / seconds
        self._step, self._time, self._waited = step, now, wait_seconds
        return rates


def duration(seconds: float) -> str:
    """``"2h 05m"``, ``"3m 20s"`` or ``"12s"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
