"""What a run tells: TensorBoard, the same scalars as JSON lines, and one readable console line. Rank 0 only.

A run lives as long as its checkpoints can be written: what goes wrong here is one line (shards/files/journal.py).
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pretrain import distributed
from pretrain.metrics.events import EventFile
from shards.files.atomic import write_atomic
from shards.files.journal import BestEffort, Journal
from shards.files.untrusted import read_json_value


class Telemetry:
    """Writers of a run; on other ranks than 0 every call does nothing.

    Args:
        folder: run folder; writes ``metrics.jsonl`` and ``tensorboard/``.
        first_step: records of later steps, left by a run that died after its last checkpoint, are dropped.

    Attributes:
        drawing: context of whatever draws and writes pictures.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._events: EventFile | None = None
        self.drawing = BestEffort(folder / "reconstruction.png", Exception)
        if distributed.is_main():
            path = folder / "metrics.jsonl"
            with BestEffort(path):
                drop_after(path, first_step)
            self._lines = Journal(path)
            self._events = EventFile(folder / "tensorboard", first_step + 1)

    def record(self, step: int, scalars: dict[str, float]) -> None:
        """One step's scalars, to TensorBoard and the JSON lines."""
        if self._events is not None:
            self._events.add_scalars(step, scalars)
            self._lines.append((json.dumps({"step": step, **scalars}) + "\n").encode())

    def picture(self, step: int, name: str, figure: Figure) -> None:
        if self._events is not None:
            self._events.add_figure(step, name, figure)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._lines.sync()
            self._lines.close()


def last_saved_step(folder: Path) -> int | None:
    """The last step after which a run saved a checkpoint, as its records tell; None where there is none."""
    path = folder / "metrics.jsonl"
    records = [record for _, record in _records(path)] if path.exists() else []
    return max((int(record["step"]) for record in records if "checkpoint_seconds" in record), default=None)


def drop_after(path: Path, step: int) -> None:
    """Keep the lines of a JSON-lines file up to a step."""
    if path.exists():
        kept = "".join(line for line, record in _records(path) if record["step"] <= step).encode()
        if kept != path.read_bytes():
            write_atomic(path, kept)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole lines of a JSON-lines file and what they say; what is no record, as crashes leave, is passed over."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with suppress(ValueError):
            record = read_json_value(line)
            if line.endswith("\n") and isinstance(record, dict) and isinstance(record.get("step"), int | float):
                yield line, record


@dataclass(frozen=True)
class Lap:
    """What happened between two logged steps: steps, seconds, and seconds of waiting, by what for."""

    steps: int
    seconds: float
    waited: dict[str, float]


class Clock:
    """Laps from one logged step to the next; what `pause` encloses takes no time."""

    def __init__(self, step: int) -> None:
        self._step, self._time, self._waited = step, time.monotonic(), dict[str, float]()

    def lap(self, step: int, **waited: float) -> Lap:
        """The lap that ends here.

        Args:
            step: steps taken so far.
            waited: seconds of waiting so far, by what for.
        """
        now = time.monotonic()
        since = {name: seconds - self._waited.get(name, 0.0) for name, seconds in waited.items()}
        lap = Lap(step - self._step, max(now - self._time, 1e-9), since)
        self._step, self._time, self._waited = step, now, waited
        return lap

    def restart(self, step: int) -> None:
        """Begin a lap here."""
        self._step, self._time = step, time.monotonic()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Evaluations and saves: rates are those of steps."""
        begin = time.monotonic()
        yield
        self._time += time.monotonic() - begin
