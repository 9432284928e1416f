"""Reading of JSON-lines logs with one record for each step, and truncation at the step that a run resumes from."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.files.atomic import write_atomic
from shards.files.untrusted import read_json_value

METRICS_FILE = "metrics.jsonl"


def last_saved_step(folder: Path) -> int | None:
    """Return the last step with a checkpoint according to ``metrics.jsonl``, or None."""
    path = folder / METRICS_FILE
    records = [record for _, record in _records(path)] if path.exists() else []
    return max((int(record["step"]) for record in records if "checkpoint_seconds" in record), default=None)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the complete records of a file, in their order."""
    return [record for _, record in _records(path)]


def drop_after(path: Path, step: int) -> None:
    """Remove the lines of a file after a step; a missing file is ignored."""
    if path.exists():
        lines = "".join(line for line, record in _records(path) if record["step"] <= step).encode()
        if lines != path.read_bytes():
            write_atomic(path, lines)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield complete lines with their records; lines truncated by a crash are skipped."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with suppress(ValueError):
            record = read_json_value(line)
            if line.endswith("\n") and isinstance(record, dict) and isinstance(record.get("step"), int | float):
                yield line, record
