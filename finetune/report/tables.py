"""The report as text: Markdown for people, CSV for scripts."""

import csv
import io

from finetune.metrics import LOWER_IS_BETTER
from finetune.report.rows import Row, TaskReport

NOT_PERCENT = {"loss", "RMSE", "R2", "hyperview_score"}
SHOWN = {
    "segmentation": ("mIoU", "macro_f1", "OA", "average_accuracy", "micro_iou"),
    "multilabel": ("mAP", "micro_mAP", "macro_f1", "micro_f1", "OA"),
    "regression": ("hyperview_score", "RMSE", "R2"),
}
"""Scores of each kind of task, the primary one first."""

TITLES = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "micro_iou": "micro IoU",
    "micro_mAP": "micro mAP",
    "average_accuracy": "average accuracy",
    "hyperview_score": "Hyperview score",
}

LEGEND = (
    "Mean ± standard deviation over seeds, and in brackets the 95 % bootstrap interval over test places. Percent, but "
    "RMSE, R2 and the Hyperview score, of which lower is better (R2: higher). mIoU, macro F1 and mAP are means over "
    "the classes that occur; micro IoU is what SpectralEarth reports as IoU and equals OA / (2 - OA). ▲: better than "
    "the same network with the weights that pretraining begins from, by a paired permutation test over places "
    "(p < 0.05 after Holm's correction for all comparisons on this page)."
)


def title(metric: str) -> str:
    """A score as a column's head."""
    return TITLES.get(metric, metric)


def number(value: float, metric: str) -> str:
    """A score as people read it."""
    return f"{value:.3f}" if metric in NOT_PERCENT else f"{100 * value:.1f}"


def spread(row: Row, metric: str) -> str:
    """Mean ± standard deviation; the latter only of several seeds."""
    mean = number(row.mean(metric), metric)
    return f"{mean} ± {number(row.deviation(metric), metric)}" if len(row.results) > 1 else mean


def cell(row: Row, metric: str) -> str:
    """A row's primary score with its interval and flag."""
    low, high = (number(one, metric) for one in row.interval)
    return f"{spread(row, metric)} [{low}, {high}]{' ▲' if row.is_better else ''}"


def summary(reports: list[TaskReport]) -> list[list[str]]:
    """Head and rows: a way of training an encoder in each, a task in each column."""
    keys: dict[tuple[str, str, str], dict[str, Row]] = {}
    for report in reports:
        ways = [(row.identity, row.architecture, row.protocol) for row in report.whole]
        for row, way in zip(report.whole, ways, strict=True):
            name = row.protocol if ways.count(way) == 1 else row.name  # heads differ from task to task
            keys.setdefault((row.label, row.identity, name), {})[report.task.name] = row
    head = ["checkpoint", "protocol"]
    for report in reports:
        arrow = " ↓" if report.primary in LOWER_IS_BETTER else ""
        head.append(f"{report.task.title or report.task.name}: {title(report.primary)}{arrow}")
    lines = [head]
    for (label, _, name), by_task in keys.items():
        cells = []
        for report in reports:
            found = by_task.get(report.task.name)
            text = "-" if found is None else cell(found, report.primary)
            is_best = found is not None and found is report.best() and len(report.whole) > 1
            cells.append(f"**{text}**" if is_best else text)
        lines.append([label, name, *cells])
    return lines


def notes(reports: list[TaskReport]) -> list[str]:
    """What must be known before a number is believed."""
    found = []
    for report in reports:
        places = len(set(report.run.places))
        if report.task.synthetic:
            found.append(f"{report.task.name}: synthetic tiles; the numbers say that the path works, nothing more.")
        if report.smallest_p > 0.01:
            found.append(
                f"{report.task.name}: {places} test places; the paired test can't give a p below "
                f"{report.smallest_p:.2g}, so few differences can be significant."
            )
    return found


def markdown(reports: list[TaskReport]) -> str:
    """The whole report."""
    parts = ["# Evaluation", _table(summary(reports)), LEGEND, *notes(reports)]
    for report in reports:
        metrics = SHOWN[report.task.kind]
        head = ["checkpoint", "protocol", "tiles", "seeds", *(title(metric) for metric in metrics)]
        lines = [head]
        for row in report.rows:
            start = [row.label, row.name, f"{100 * row.fraction:g} %", str(len(row.results))]
            lines.append([*start, *(spread(row, metric) for metric in metrics)])
        parts += [f"## {report.task.title or report.task.name}", report.task.description, _table(lines)]
        if report.run.seen is not None:
            parts.append(overlap(report))
    return "\n\n".join(parts) + "\n"


def overlap(report: TaskReport) -> str:
    """The overlap audit in words and numbers."""
    assert report.run.seen is not None
    seen, all_ = sum(report.run.seen), len(report.run.seen)
    told = f"Scenes of {seen} of {all_} test tiles were in the pretraining shards."
    if not 0 < seen < all_:
        return told
    best = report.best()
    values = report.without_seen(best)
    name = title(report.primary)
    return (
        f"{told} {name} of {best.label}, {best.name}: {number(best.mean(report.primary), report.primary)} on all test "
        f"tiles, {number(sum(values) / len(values), report.primary)} on the other {all_ - seen}."
    )


def _table(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    padded = [
        [text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def comma_separated(reports: list[TaskReport]) -> str:
    """One line a row and score: everything a script may want."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(
        "task checkpoint sha256 protocol head fraction seeds metric mean deviation low high p better".split()
    )
    for report in reports:
        for row in report.rows:
            for metric in SHOWN[report.task.kind]:
                judged: list[object] = ["", "", "", ""]
                if metric == report.primary:
                    judged = [*row.interval, "" if row.p is None else row.p, row.is_better]
                start = [report.task.name, row.label, row.identity, row.protocol, row.head, row.fraction]
                writer.writerow([*start, len(row.results), metric, row.mean(metric), row.deviation(metric), *judged])
    return out.getvalue()
