"""The table of scores: on the console, as Markdown and as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.probe import Outcome
from finetune.tasks import Task
from shards.atomic import write_atomic


@dataclass(frozen=True)
class Row:
    """One evaluated encoder under one protocol."""

    encoder: str
    protocol: str
    outcome: Outcome


def markdown_table(rows: list[Row], task: Task) -> str:
    """Test scores in percent, a row each, then IoU per class."""
    names = [one.name for one in task.classes]
    head = ["encoder", "protocol", "OA", "mIoU", "micro IoU", *names]
    lines = [[row.encoder, row.protocol, *_percent(row.outcome)] for row in rows]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    table = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in [head, rule, *lines]]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def write_report(folder: Path, rows: list[Row], task: Task, note: str) -> None:
    """``results.json`` and ``report.md`` in the run folder."""
    results = [{"encoder": row.encoder, "protocol": row.protocol, **_scores(row.outcome)} for row in rows]
    classes = [one.name for one in task.classes]
    document = {"task": task.name, "classes": classes, "synthetic": task.synthetic, "results": results}
    write_atomic(folder / "results.json", json.dumps(document, indent=1) + "\n")
    text = f"# {task.name}\n\n{task.description}\n\nTest scores in percent.\n\n{markdown_table(rows, task)}\n\n{note}\n"
    write_atomic(folder / "report.md", text)


def _scores(outcome: Outcome) -> dict[str, Any]:
    chosen = {"lr": outcome.lr, "step": outcome.step}
    return {"test": asdict(outcome.test), "validation": asdict(outcome.validation), **chosen}


def _percent(outcome: Outcome) -> list[str]:
    test = outcome.test
    shares = [test.overall_accuracy, test.macro_iou, test.micro_iou, *test.class_iou]
    return ["-" if share is None else f"{100 * share:.1f}" for share in shares]
