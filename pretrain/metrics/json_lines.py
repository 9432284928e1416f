"""Files of JSON lines, one record a step: read back, and cut off at the step that a run resumes from."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.files.atomic import write_atomic
from shards.files.untrusted import read_json_value

METRICS_FILE = "metrics.jsonl"


def last_saved_step(folder: Path) -> int | None:
    """Return the last step after which ``metrics.jsonl`` records a checkpoint, None where it records none."""
    path = folder / METRICS_FILE
    records = [record for _, record in _records(path)] if path.exists() else []
    return max((int(record["step"]) for record in records if "checkpoint_seconds" in record), default=None)


def drop_after(path: Path, step: int) -> None:
    """Keep the lines of a file up to a step; a file that doesn't exist is left alone."""
    if path.exists():
        kept = "".join(line for line, record in _records(path) if record["step"] <= step).encode()
        if kept != path.read_bytes():
            write_atomic(path, kept)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield complete lines with their records; lines that a crash cut off are skipped."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with suppress(ValueError):
            record = read_json_value(line)
            if line.endswith("\n") and isinstance(record, dict) and isinstance(record.get("step"), int | float):
                yield line, record
