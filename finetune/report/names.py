"""Distinct names of rows and tasks, composed of the settings in which they differ."""

from collections.abc import Hashable, Sequence
from typing import Any

from finetune.data.hashes import digest
from finetune.evaluation.provenance import OF_ENCODER, task_hash
from finetune.report.rows import Row, TaskReport

SHORTEST = 6
"""Minimum number of characters of a hash in a name."""

WORDS = {
    "epochs": "{} epochs",
    "warmup_epochs": "{} warm-up epochs",
    "views": "{} views",
    "neighbors": "{} neighbors",
    "lrs": "lr {}",
    "select": "selected by {}",
    "evaluate_every": "evaluated every {} epochs",
    "patience": "patience {}",
    "first_blocks": "first {} blocks",
    "version": "by an earlier version",
}
"""Format of a setting; others are written as "name value"."""


def name_tasks(reports: Sequence[TaskReport]) -> None:
    """Set the titles of tasks; tasks of the same name are distinguished by their differences."""
    for report in reports:
        report.title = report.task.title or report.task.name
    for alike in _alike(reports, lambda report: report.title):
        properties = {
            "classes" if alike[0].task.classes else "targets": [task_hash(one.task) for one in alike],
            "test labels": [_labels(one) for one in alike],
            "test tiles": [digest(one.run.tiles) for one in alike],
        }
        for name, values in properties.items():
            if len(set(values)) > 1:
                short = _shorten(values)
                for report, value in zip(alike, values, strict=True):
                    report.title += f" · {name} {short[value] if _is_hash(value) else value}"
    for alike in _alike(reports, lambda report: report.title):
        for number, report in enumerate(alike, 1):
            report.title += f" · {number}"


def _labels(report: TaskReport) -> str:
    return str(report.run.data.get("labels", {}).get("test", "of an earlier version"))


def name_rows(reports: Sequence[TaskReport]) -> None:
    """Set the labels of encoders, with hashes if names are equal, and the settings that distinguish rows."""
    _label_encoders([row for report in reports for row in report.rows])
    for report in reports:
        for protocol in dict.fromkeys(row.protocol for row in report.rows):
            _distinguish([row for row in report.rows if row.protocol == protocol])
        for alike in _alike(report.rows, lambda row: (row.label, row.name, row.portion)):
            for number, row in enumerate(alike, 1):
                row.rest += (
                    f" · {row.folder}" if len({other.folder for other in alike}) == len(alike) else f" · {number}"
                )


def _label_encoders(rows: Sequence[Row]) -> None:
    first: dict[tuple[str, str], str] = {}
    for row in rows:
        row.label = first.setdefault((row.identity, row.architecture), row.label)
    short = _shorten([identity for identity, _ in first])
    names = list(first.values())
    for row in rows:
        name = first[row.identity, row.architecture]
        if names.count(name) > 1:
            row.label = f"{name} ({short[row.identity]})"


def _distinguish(rows: Sequence[Row]) -> None:
    """Add every setting in which rows differ, except those determined by another column."""
    for key in dict.fromkeys(key for row in rows for key in row.settings):
        by_context: dict[Hashable, set[str]] = {}
        for row in rows:
            by_context.setdefault(_context(key, row), set()).add(_text(row.settings.get(key)))
        if all(len(values) == 1 for values in by_context.values()):
            continue
        values = [_text(row.settings.get(key)) for row in rows]
        short = _shorten([value for value in values if _is_hash(value)])
        for row, value in zip(rows, values, strict=True):
            if key in row.settings:
                row.rest += f" · {WORDS.get(key, f'{key} {{}}').format(short.get(value, value))}"


def _context(key: str, row: Row) -> Hashable:
    """Return the values that determine a setting."""
    if key in OF_ENCODER:
        return row.identity, row.architecture
    return {"training windows": row.portion, "heads": row.head, "seed of the weights": row.is_random_init}.get(key)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_hash(value: str) -> bool:
    return len(value) >= 32 and set(value) <= set("0123456789abcdef")


def _shorten(values: Sequence[str]) -> dict[str, str]:
    """Return the shortest prefixes that keep the values distinct."""
    different = set(values)
    length = SHORTEST
    while len({value[:length] for value in different}) < len(different):
        length += 1
    return {value: value[:length] for value in different}


def _alike(things: Sequence[Any], name: Any) -> list[list[Any]]:
    """Return groups of two or more with the same name."""
    groups: dict[Hashable, list[Any]] = {}
    for thing in things:
        groups.setdefault(name(thing), []).append(thing)
    return [group for group in groups.values() if len(group) > 1]
