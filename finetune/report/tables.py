"""The tables of the report as text, and the report as CSV."""

import csv
import io
import math

import numpy as np

from finetune.metrics.metric import METRICS, lower_is_better
from finetune.report.compare import SIGNIFICANT
from finetune.report.rows import Comparison, Row, TaskReport

LEGEND = (
    "Mean ± standard deviation over seeds, and in brackets the 95 % bootstrap interval over test places. Percent, but "
    "RMSE, MAE, R2 and the Hyperview score, of which lower is better (R2: higher). mIoU, macro F1 and mAP are means "
    "over the classes that occur; micro IoU is what SpectralEarth reports as IoU and equals OA / (2 - OA). ▲: better "
    "than the same network with its initial weights before pretraining, by a paired permutation test over places "
    "(p < 0.05 after Holm's correction for all such tests on this page). –: undefined. The results of a row "
    "differ in nothing but the seed; its name lists the settings in which rows differ, contents by the start of a hash."
)

UNDEFINED = "–"

SHOTS = (
    "k shots: trained on all tiles of k places of each class. Each seed draws its own places, so that the deviation "
    "over seeds includes that of the draw."
)


def title(metric: str) -> str:
    """Return the title of a score for the head of a column."""
    return METRICS[metric].title if metric in METRICS else metric


def number(value: float, metric: str) -> str:
    """Return a score as text."""
    if not math.isfinite(value):
        return UNDEFINED
    is_share = metric in METRICS and METRICS[metric].in_percent
    return f"{100 * value:.1f}" if is_share else f"{value:.3f}"


def spread(row: Row, metric: str) -> str:
    """Return mean ± standard deviation, or only the mean for a single seed."""
    mean = number(row.mean(metric), metric)
    return f"{mean} ± {number(row.deviation(metric), metric)}" if len(row.values(metric)) > 1 else mean


def cell(row: Row, metric: str) -> str:
    """Return a row's primary score with its interval and flag."""
    if not math.isfinite(row.mean(metric)):
        return UNDEFINED
    low, high = (number(bound, metric) for bound in row.interval)
    return f"{spread(row, metric)} [{low}, {high}]{' ▲' if row.is_better else ''}"


def summary(reports: list[TaskReport]) -> list[list[str]]:
    """Return head and rows of a table with one training setup per row and one task per column."""
    keys: dict[tuple[str, str], dict[int, Row]] = {}
    for index, report in enumerate(reports):
        rows = report.on_all_tiles or report.rows
        heads: dict[str, set[str]] = {}
        for row in rows:
            heads.setdefault(row.protocol, set()).add(row.head)
        for row in rows:
            is_only = len(heads[row.protocol]) == 1  # heads differ from task to task
            name = f"{row.protocol}{row.rest}" if is_only else row.name
            share = "" if row.portion.is_all else f" · {row.portion.of_tiles}"
            keys.setdefault((row.label, f"{name}{share}"), {})[index] = row
    head = ["checkpoint", "protocol"]
    for report in reports:
        arrow = " ↓" if lower_is_better(report.primary) else ""
        head.append(f"{report.title}: {title(report.primary)}{arrow}")
    lines = [head]
    for (label, name), by_task in keys.items():
        cells = []
        for index, report in enumerate(reports):
            row_of_task = by_task.get(index)
            text = "-" if row_of_task is None else cell(row_of_task, report.primary)
            is_best = row_of_task is not None and row_of_task is report.best() and len(report.on_all_tiles) > 1
            cells.append(f"**{text}**" if is_best else text)
        lines.append([label, name, *cells])
    return lines


def pretraining(reports: list[TaskReport]) -> list[list[str]]:
    """Return head and rows of what the checkpoints were pretrained on; only the head if no file says it."""
    lines = [["checkpoint", "pretrained on", "objective", "tiles seen"]]
    records = {row.label: row.encoder for report in reports for row in report.rows}
    for label, record in records.items():
        if record.get("pretrained_on"):
            seen = f"{record['samples_seen']:,}"
            lines.append([label, record["pretrained_on"], record["objective"], seen])
    return lines


def comparisons(report: TaskReport) -> list[list[str]]:
    """Return head and rows of the tests between trained rows; only the head if there are none."""
    lines = [["first", "second", "tiles", f"{title(report.primary)}: first - second", "p"]]
    for comparison in report.comparisons:
        names = [f"{row.label} · {row.name}" for row in (comparison.first, comparison.second)]
        p = f"**{comparison.p:.2g}**" if comparison.p < SIGNIFICANT else f"{comparison.p:.2g}"
        lines.append([*names, comparison.first.portion.name, difference(comparison), p])
    return lines


def difference(comparison: Comparison) -> str:
    """Return a difference of scores with its sign and interval."""
    value, metric = comparison.difference, comparison.metric
    low, high = (number(bound, metric) for bound in comparison.interval)
    return f"{'+' if value > 0 else ''}{number(value, metric)} [{low}, {high}]"


COMPARED = (
    "Paired permutation tests over test places: two encoders in one setting, and one encoder in two. In brackets, the "
    "95 % bootstrap interval of the difference; p is corrected by Holm for all of these tests on this page, bold below "
    "0.05. Tests against the random-init baseline: ▲ in the table above."
)


def notes(reports: list[TaskReport]) -> list[str]:
    """Return the caveats that a reader must know before trusting a number."""
    caveats = []
    by_name: dict[str, list[str]] = {}
    for report in reports:
        by_name.setdefault(report.task.name, []).append(report.title)
    for name, titles in by_name.items():
        if len(titles) > 1:
            caveats.append(
                f"{name}: runs differ in classes, test tiles or test labels, so that these can't be compared: "
                f"{'; '.join(titles)}."
            )
    if any(row.portion.shots is not None for report in reports for row in report.rows):
        caveats.append(SHOTS)
    for report in reports:
        places = len(set(report.run.places))
        for row in report.rows:
            diverged = [result.seed for result in row.results if not all(map(math.isfinite, result.test.values()))]
            if diverged:
                seeds = ", ".join(map(str, diverged))
                caveats.append(f"{report.title}: {row.label}, {row.name}: scores of seed {seeds} are not finite.")
        if report.task.synthetic:
            caveats.append(f"{report.title}: synthetic tiles; the numbers only show that the pipeline works.")
        if report.smallest_p > 0.01:
            caveats.append(
                f"{report.title}: {places} test places; the paired test can't give a p below "
                f"{report.smallest_p:.2g}, so few differences can be significant."
            )
    return caveats


def overlap(report: TaskReport) -> str:
    """Describe the leakage of pretraining scenes into the test tiles; empty if not checked."""
    best = report.best()
    if best.run.seen is None:
        return ""
    seen, all_ = sum(best.run.seen), len(best.run.seen)
    summary_line = f"Scenes of {seen} of {all_} test tiles were in the pretraining shards."
    if not 0 < seen < all_:
        return summary_line
    values = report.without_seen(best)
    name = title(report.primary)
    unseen = number(sum(values) / len(values), report.primary) if values else UNDEFINED
    return (
        f"{summary_line} {name} of {best.label}, {best.name}: {number(best.mean(report.primary), report.primary)} on "
        f"all test tiles, {unseen} on the other {all_ - seen}."
    )


def comma_separated(reports: list[TaskReport]) -> str:
    """Return the report as CSV: one line for each row and score."""
    out = io.StringIO()
    writer = csv.writer(out)
    columns = "task checkpoint sha256 protocol head fraction seeds metric mean deviation low high p better"
    writer.writerow([*columns.split(), "settings", "title", "pretrained_on", "shots"])
    for report in reports:
        for row in report.rows:
            for metric in (*report.kind.metrics, *(["ECE"] if row.values("ECE") else [])):
                judged: list[object] = ["", "", "", ""]
                if metric == report.primary:
                    low, high = (_finite(bound) for bound in row.interval)
                    judged = [low, high, "" if row.p is None else row.p, row.is_better]
                fraction = float(np.mean([result.fraction for result in row.results]))
                start = [report.task.name, row.label, row.identity, row.protocol, row.head, fraction]
                mean, deviation = _finite(row.mean(metric)), _finite(row.deviation(metric))
                rest = [row.rest.removeprefix(" · "), report.title, row.encoder.get("pretrained_on", "")]
                rest.append(row.portion.shots or "")
                writer.writerow([*start, len(row.results), metric, mean, deviation, *judged, *rest])
    return out.getvalue()


def _finite(value: float) -> object:
    return value if math.isfinite(value) else ""
