"""The report as one HTML file that needs nothing else."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

import numpy as np

from finetune.report import charts
from finetune.report.rows import Row, TaskReport
from finetune.report.tables import (
    COMPARED,
    LEGEND,
    SHOWN,
    cell,
    comparisons,
    notes,
    number,
    overlap,
    spread,
    summary,
    title,
)

LINES = 8
"""Rows that are drawn in one chart; the best ones."""


def page(reports: list[TaskReport], more: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        more: notes beside those on the numbers.
    """
    style = files("finetune.report").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#task-{place}">{escape(report.title)}</a>' for place, report in enumerate(reports))
    told = "".join(f"<li>{escape(note)}</li>" for note in [*more, *notes(reports)])
    body = [
        "<header><h1>Evaluation</h1>",
        f"<nav>{links}</nav></header>" if len(reports) > 1 else "</header>",
        f'<section>{_summary(reports)}<p class="small">{escape(LEGEND)}</p>',
        f'<ul class="notes">{told}</ul></section>' if told else "</section>",
        *(_section(report, place) for place, report in enumerate(reports)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _summary(reports: list[TaskReport]) -> str:
    head, *lines = summary(reports)
    return _table(head, lines, "summary")


def _table(head: list[str], lines: list[list[str]], kind: str = "") -> str:
    """A table whose first column names the row; ``**text**`` is bold."""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    rows = []
    for line in lines:
        cells = [f'<th scope="row">{escape(line[0])}</th>']
        for text in line[1:]:
            is_best = text.startswith("**")
            cells.append(f"<td{' class=best' if is_best else ''}>{_cell(text.strip('*'))}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _cell(text: str) -> str:
    """Intervals small, below the mean."""
    mean, bracket, rest = text.partition(" [")
    if not bracket:
        return escape(text)
    interval, _, flag = rest.partition("]")
    better = ' <span class="better" title="better than untrained">▲</span>' if flag.strip() else ""
    return f'{escape(mean)}{better}<span class="interval">{escape(interval)}</span>'


def _section(report: TaskReport, place: int) -> str:
    task, run = report.task, report.run
    tiles = " / ".join(f"{run.data['tiles'][split]} {split}" for split in ("train", "val", "test"))
    facts = f"{tiles} tiles of {run.data['sensor']}, split {run.data['split']}, windows of {run.data['window']} px"
    parts = [
        f'<section id="task-{place}"><h2>{escape(report.title)}</h2>',
        f'<p>{escape(task.description)}. <span class="small">{escape(facts)}.</span></p>',
        _scores(report),
    ]
    if audit := overlap(report):
        parts.append(f"<p>{escape(audit)}</p>")
    parts += [_comparisons(report), _by_output(report), _curves(report), _fractions(report)]
    if task.kind == "segmentation":
        parts += [_confusion(report), _panels(report)]
    return "".join([*parts, _cost(report), "</section>"])


def _scores(report: TaskReport) -> str:
    metrics = SHOWN[report.task.kind]
    head = ["checkpoint", "protocol", "tiles", "seeds", *(title(metric) for metric in metrics)]
    lines = []
    for row in report.rows:
        first = cell(row, report.primary)
        text = f"**{first}**" if row is report.best() and len(report.rows) > 1 else first
        rest = [spread(row, metric) for metric in metrics[1:]]
        lines.append([row.label, row.name, f"{100 * row.fraction:g} %", str(len(row.results)), text, *rest])
    return _table(head, lines)


def _drawn(report: TaskReport) -> list[Row]:
    return report.ranked(report.whole)[:LINES]


def _comparisons(report: TaskReport) -> str:
    head, *lines = comparisons(report)
    return f"<h3>Comparisons</h3><p class='small'>{escape(COMPARED)}</p>{_table(head, lines)}" if lines else ""


def _label(row: Row) -> str:
    """The way first: encoders' names are long, and begin alike."""
    return f"{row.name} · {row.label}"


def _by_output(report: TaskReport) -> str:
    """Bars of the classes or targets."""
    kind, task = report.task.kind, report.task
    metric, told = {
        "segmentation": ("iou", "IoU by class"),
        "multilabel": ("average_precision", "Average precision by class"),
        "regression": ("rmse", "RMSE by target (lower is better)"),
    }[kind]
    colors = [one.color for one in task.classes] or [charts.INK[number] for number in range(len(task.targets))]
    rows = [(_label(row), row.by_output(metric)) for row in _drawn(report)[:6]]
    return f"<h3>{told}</h3>{charts.bars(task.outputs, colors, rows)}" if rows else ""


def _curves(report: TaskReport) -> str:
    """Validation score over epochs, mean over seeds."""
    series = []
    for row in _drawn(report):
        curves = [one.curve for one in row.results if one.curve]
        if not curves or len(curves[0]) < 2:
            continue
        shared = min(len(curve) for curve in curves)
        points = [
            (curves[0][at]["epoch"], float(np.mean([curve[at].get(report.primary, np.nan) for curve in curves])))
            for at in range(shared)
        ]
        points = [point for point in points if np.isfinite(point[1])]
        series.append((_label(row), points))
    drawn = charts.lines(f"{title(report.primary)} on the validation tiles", series, "epoch")
    return f"<h3>Learning</h3>{drawn}" if drawn else ""


def _fractions(report: TaskReport) -> str:
    """Test score over the share of the training tiles."""
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        groups.setdefault(_label(row), []).append(row)
    defined = {name: [row for row in rows if np.isfinite(row.mean(report.primary))] for name, rows in groups.items()}
    several = {name: sorted(rows, key=lambda row: row.fraction) for name, rows in defined.items() if len(rows) > 1}
    if not several:
        return ""
    series = [
        (name, [(100 * row.fraction, row.mean(report.primary)) for row in rows]) for name, rows in several.items()
    ]
    bands = [[row.interval for row in rows] for rows in several.values()]
    drawn = charts.lines(f"Test {title(report.primary)}", series, "% of the training tiles", True, bands)
    return f"<h3>With fewer labels</h3>{drawn}"


def _confusion(report: TaskReport) -> str:
    best = report.best()
    matrix = np.sum([one.units.sum(0) for one in best.results], axis=0)
    told = f"{_label(best)}, all seeds added up"
    return f"<h3>Confusion</h3><p>{escape(told)}</p>{charts.confusion(report.task.outputs, matrix)}"


def _panels(report: TaskReport) -> str:
    """A few test windows: image, label, and what the rows' first seeds predict."""
    run, task = report.run, report.task
    colors = [one.color for one in task.classes]
    shown = [row for row in _drawn(report) if row.results[0].maps.shape == run.labels.shape][:4]
    heads = ["image", "label", *(_label(row) for row in shown)]
    lines = []
    for at, (rgb, label) in enumerate(zip(run.rgb, run.labels, strict=True)):
        cells = [charts.image(rgb, f"test window {at + 1}, image")]
        cells.append(charts.image(charts.colored(label, colors), f"test window {at + 1}, label"))
        for row in shown:
            drawn = charts.colored(row.results[0].maps[at], colors)
            cells.append(charts.image(drawn, f"test window {at + 1}, {_label(row)}"))
        lines.append("".join(f"<td>{one}</td>" for one in cells))
    top = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    key = charts.legend([*task.outputs, "not counted"], [*colors, "#bebebe"])
    table = f'<table class="panels"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<h3>Predictions</h3>{key}<div class="scroll">{table}</div>'


def _cost(report: TaskReport) -> str:
    """Seconds of every part, added up over runs."""
    total: dict[str, float] = {}
    for cost in report.costs.values():
        for part, seconds in cost.items():
            total[part] = total.get(part, 0.0) + seconds
    lines = [[part, f"{seconds:,.0f}"] for part, seconds in total.items()]
    best = report.best()
    chosen = ", ".join(
        f"seed {one.seed}: lr {one.lr:g}, epoch {one.epoch}" for one in best.results if one.lr is not None
    )
    low, high = (number(one, report.primary) for one in best.interval)
    told = f"Best: {_label(best)}, {low} to {high}" + (f" ({chosen})" if chosen else "")
    return f"<h3>Cost</h3>{_table(['part', 'seconds'], lines)}<p class='small'>{escape(told)}.</p>"
