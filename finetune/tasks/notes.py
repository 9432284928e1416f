"""Where the data of a task comes from: `python -m finetune fetch-notes [TASK]`."""

import argparse
import textwrap

from finetune.tasks import Task, get_task, task_names

WIDTH = 100
"""Maximum characters per line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("task", nargs="?", help="name of a task; without it, a table of all tasks")


def run(arguments: argparse.Namespace) -> int:
    """Print the notes of a task, or a table of all tasks; nothing is downloaded."""
    print(page(get_task(arguments.task)) if arguments.task else table())
    return 0


def page(task: Task) -> str:
    """Return all that is known about the data of a task, as text."""
    lines = [f"{task.title or task.name}: {task.description}", ""]
    if task.notes is None:
        return "\n".join([*lines, "synthetic: nothing to fetch" if task.synthetic else "no notes on its data"])
    notes = task.notes
    for name in ("source", "size", "license", "citation", "files", "bands", "splits"):
        lines += _entry(name, getattr(notes, name))
    for defect in notes.defects:
        lines += _entry("defect", defect)
    return "\n".join(lines)


def _entry(name: str, text: str) -> list[str]:
    indent = " " * 10
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{name}:".ljust(len(indent)),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table() -> str:
    """Return a table of all tasks with a note: size, license and source of the data."""
    rows: list[tuple[str, ...]] = [("task", "size", "license", "source")]
    for task in map(get_task, task_names()):
        if task.notes is not None:
            notes = task.notes
            short = (notes.size.partition(":"), notes.license.partition(":"), notes.source.partition(" ("))
            rows.append((task.name, *(text[0] for text in short)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]) for row in rows
    )
