"""Unfinished evaluations: the progress of each, and its missing parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.evaluation.portion import list_portions
from finetune.evaluation.runs import encoder_names, expand, list_runs
from shards.config import parse_values
from shards.errors import ConfigError
from shards.files.text import read_text_file
from shards.files.untrusted import read_json_value

SHOWN = 6
"""Maximum number of missing parts that are named."""


def unfinished(folders: Sequence[Path]) -> list[str]:
    """Return a line for each incomplete evaluation at or below the folders."""
    lines: dict[Path, str | None] = {}
    for folder in folders:
        for path in sorted(folder.rglob("config.yaml")):
            lines.setdefault(path.parent.resolve(), _line(path.parent))
    return [line for line in lines.values() if line]


def _line(folder: Path) -> str | None:
    """Describe the folder of an unfinished run; None if it is complete or not an evaluation."""
    config, status = _config(folder / "config.yaml"), _status(folder / "status.json")
    if config is None:
        return None
    has_results = (folder / "results.json").is_file()
    state = str(status.get("status", "unknown"))
    is_complete = state == "complete"
    if is_complete and has_results:
        return None
    parts = _parts_of(config)
    done = status.get("step")
    progress = f"{done} of {len(parts)} parts done" if isinstance(done, int) else "its progress is unknown"
    missing = parts[done:] if isinstance(done, int) else []
    if missing and not is_complete:
        names = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        progress += f"; missing: {names}"
    earlier = "; its rows come from an earlier start" if has_results else "; none of its rows are shown"
    known = {"part": "at {}", "time": "last updated at {}", "reason": "{}"}  # earlier versions lack some keys
    state = ", ".join([state, *(word.format(status[key]) for key, word in known.items() if status.get(key))])
    return f"{folder}: not finished ({state}): {progress}{earlier}"


def _parts_of(config: dict[str, Any]) -> list[str]:
    """Return the parts in the order in which they run (finetune/evaluate.py)."""
    shift, layers = config.get("shift", {}), config.get("layers", {}).get("numbers")
    protocols = expand(config.get("protocol", []), shift.get("train", "all"), shift.get("test", []), layers or ())
    names = encoder_names(protocols, config.get("compare_random", True), config.get("compare_raw", False))
    portions = list_portions(config.get("fractions", [1.0]), config.get("shots", []))
    return [
        f"{name} {protocol}" + ("" if portion.is_all else f" of {portion.of_tiles}")
        for name, protocol, portion in list_runs(names, protocols, portions)
    ]


def _config(path: Path) -> dict[str, Any] | None:
    """Read the config of an evaluation; None if it is damaged or another kind of config."""
    try:
        content = parse_values(read_text_file(path, str(path)), str(path))
    except ConfigError:
        return None
    is_evaluation = isinstance(content, dict) and isinstance(content.get("protocol"), list) and "task" in content
    return (
        content
        if is_evaluation and all(isinstance(content.get(key, []), list) for key in ("fractions", "shots"))
        else None
    )


def _status(path: Path) -> dict[str, Any]:
    try:
        content = read_json_value(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
