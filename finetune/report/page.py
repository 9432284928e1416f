"""The report as one self-contained HTML file; the markup is in ``templates``."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from finetune.evaluation.layers import probed_layer
from finetune.report import charts
from finetune.report.baselines import TESTED, baseline_sentences, samples_sentence
from finetune.report.calibration import MOST_DRAWN, calibrated, calibration_legend, calibration_table, reliability
from finetune.report.charts import Cell
from finetune.report.cost import cost_legend, cost_table
from finetune.report.depth import depth_legend, depth_sentences, line_name, rows_by_layer
from finetune.report.distance import distance_legend, score_by_distance
from finetune.report.over_tasks import LEGEND as OVER_TASKS
from finetune.report.over_tasks import over_tasks
from finetune.report.rows import Row, TaskReport
from finetune.report.same_place import same_place_legend, same_place_table
from finetune.report.shift import shift_legend, shift_table
from finetune.report.tables import (
    COMPARED,
    LEGEND,
    cell,
    comparisons,
    notes,
    number,
    overlap,
    pretraining,
    spread,
    summary,
    title,
)

MOST_LINES = 8
"""Maximum number of rows drawn in one chart, the best ones."""


@dataclass(frozen=True)
class Section:
    """A section of a task's report: a heading with a table or a chart."""

    heading: str
    body: Markup


@dataclass(frozen=True)
class TaskPage:
    """The contents of the page for one task, in this order."""

    title: str
    description: str
    facts: str
    scores: Markup
    overlap: str
    sections: list[Section]


def page(reports: list[TaskReport], more: Sequence[str] = ()) -> str:
    """Return the complete page.

    Args:
        more: notes to show in addition to those on the numbers.
    """
    known, ranking = pretraining(reports), over_tasks(reports)
    return charts.TEMPLATES.get_template("page.html").render(
        heading="Evaluation",
        summary=html_table(summary(reports), "summary"),
        legend=LEGEND,
        notes=[*more, *notes(reports)],
        over_tasks=html_table(ranking) + _small(OVER_TASKS) if len(ranking) > 1 else "",
        pretraining=html_table(known, "pretraining") if len(known) > 1 else "",
        tasks=[_task_page(report) for report in reports],
    )


def _task_page(report: TaskReport) -> TaskPage:
    task, run = report.task, report.run
    tiles = " / ".join(f"{run.data['tiles'][split]} {split}" for split in ("train", "val", "test"))
    facts = f"{tiles} tiles of {run.data['sensor']}, split {run.data['split']}, windows of {run.data['window']} px"
    if bound := run.data.get("max error"):
        facts += f", stored with a maximum error of {bound}"
    sections = [
        _baselines(report),
        _shift(report),
        _depth(report),
        _comparisons(report),
        _by_output(report),
        _curves(report),
        _fractions(report),
        _distance(report),
    ]
    sections += [_confusion(report), _calibration(report), *_tables(report), _panels(report), _cost(report)]
    present = [section for section in sections if section is not None]
    return TaskPage(report.title, task.description, facts, _scores(report), overlap(report), present)


def html_table(rows: list[list[str]], kind: str = "") -> Markup:
    """Return a table from the rows of a text table, the first of which is the head."""
    head, *lines = rows
    return charts.table(head, [(line[0], [_cell(text) for text in line[1:]]) for line in lines], kind)


def _cell(text: str) -> Cell:
    """Parse a cell of a text table: ``**mean [low, high] ▲**``, where everything except the mean is optional."""
    mean, _, rest = text.strip("*").partition(" [")
    interval, _, flag = rest.partition("]")
    return Cell(mean, interval, bool(flag.strip()), text.startswith("**"))


def _scores(report: TaskReport) -> Markup:
    metrics = report.kind.metrics
    lines = [["checkpoint", "protocol", "tiles", "seeds", *(title(metric) for metric in metrics)]]
    for row in report.rows:
        first = cell(row, report.primary)
        text = f"**{first}**" if row is report.best() and len(report.rows) > 1 else first
        rest = [spread(row, metric) for metric in metrics[1:]]
        lines.append([row.label, row.name, row.portion.name, str(len(row.results)), text, *rest])
    return html_table(lines)


def _comparisons(report: TaskReport) -> Section | None:
    lines = comparisons(report)
    return Section("Comparisons", _small(COMPARED) + html_table(lines)) if len(lines) > 1 else None


def _baselines(report: TaskReport) -> Section | None:
    if not report.against_baselines:
        return None
    sentences = filter(None, [*baseline_sentences(report), samples_sentence(report)])
    text = Markup("").join(Markup("<p>{}</p>").format(sentence) for sentence in sentences)
    return Section("Against baselines", text + _small(TESTED))


def _shift(report: TaskReport) -> Section | None:
    lines, found = shift_table(report), same_place_table(report)
    body = _small(shift_legend(report)) + html_table(lines)
    if len(found) > 1:
        body += _small(same_place_legend(report)) + html_table(found)
    return Section("Spectral shift", body) if len(lines) > 1 else None


def _depth(report: TaskReport) -> Section | None:
    """Return the test score over the layers of the encoders, and the best layer of each."""
    groups = rows_by_layer(report)
    finite = {
        line_name(line): {layer: row for layer, row in rows.items() if np.isfinite(row.mean(report.primary))}
        for line, rows in groups.items()
    }
    drawn = {name: rows for name, rows in finite.items() if rows}
    if not drawn:
        return None
    series = [
        (name, [(float(layer), row.mean(report.primary)) for layer, row in rows.items()])
        for name, rows in drawn.items()
    ]
    bands = [[row.interval for row in rows.values()] for rows in drawn.values()]
    text = Markup("").join(Markup("<p>{}</p>").format(sentence) for sentence in depth_sentences(report))
    chart = charts.lines(f"Test {title(report.primary)}", series, "layer", bands=bands)
    return Section("Layers", text + chart + _small(depth_legend(report)))


def _by_output(report: TaskReport) -> Section | None:
    """Return bars of the classes or targets."""
    task, (metric, heading) = report.task, report.kind.by_output
    colors = [entry.color for entry in task.classes] or [charts.INK[number] for number in range(len(task.targets))]
    rows = [(_label(row), row.by_output(metric)) for row in _drawn(report)[:6]]
    return Section(heading, charts.bars(task.outputs, colors, rows)) if rows else None


def _curves(report: TaskReport) -> Section | None:
    """Return the validation score over epochs, averaged over seeds."""
    series = []
    for row in _drawn(report):
        curves = [result.curve for result in row.results if result.curve]
        if not curves or len(curves[0]) < 2:
            continue
        shared = min(len(curve) for curve in curves)
        points = [
            (curves[0][at]["epoch"], float(np.mean([curve[at].get(report.primary, np.nan) for curve in curves])))
            for at in range(shared)
        ]
        series.append((_label(row), [point for point in points if np.isfinite(point[1])]))
    drawn = charts.lines(f"{title(report.primary)} on the validation tiles", series, "epoch")
    return Section("Learning", drawn) if drawn else None


def _fractions(report: TaskReport) -> Section | None:
    """Return the test score over the fraction of the training tiles, and over the places of each class (shots)."""
    fractions = [(row, 100 * row.portion.fraction) for row in report.rows if row.portion.fraction is not None]
    shots = [(row, float(row.portion.shots)) for row in report.rows if row.portion.shots is not None]
    drawn = _over(report, fractions, "% of the training tiles") + _over(report, shots, "places of each class")
    return Section("With fewer labels", drawn) if drawn else None


def _over(report: TaskReport, rows: list[tuple[Row, float]], across: str) -> Markup:
    """Return a chart of the test score over the size of the portion; empty unless an encoder has several sizes."""
    groups: dict[str, list[tuple[Row, float]]] = {}
    for row, size in rows:
        if np.isfinite(row.mean(report.primary)):
            groups.setdefault(_label(row), []).append((row, size))
    several = {name: sorted(of_name, key=lambda one: one[1]) for name, of_name in groups.items() if len(of_name) > 1}
    series = [(name, [(size, row.mean(report.primary)) for row, size in found]) for name, found in several.items()]
    bands = [[row.interval for row, _ in found] for found in several.values()]
    return charts.lines(f"Test {title(report.primary)}", series, across, True, bands)


def _distance(report: TaskReport) -> Section | None:
    """Return the test score over the distance to the nearest training tile."""
    found = [(_label(row), by) for row in _drawn(report) if (by := score_by_distance(report, row)) is not None][:4]
    if not found:
        return None
    series, bands = [(name, by.points) for name, by in found], [by.intervals for _, by in found]
    drawn = charts.lines(f"Test {title(report.primary)}", series, "km to the nearest training tile", bands=bands)
    return Section("Distance to training tiles", drawn + _small(distance_legend()))


def _confusion(report: TaskReport) -> Section | None:
    best = report.best()
    confusions = [report.kind.confusion(result.statistics) for result in best.results]
    matrices = [matrix for matrix in confusions if matrix is not None]
    if not matrices:
        return None
    text = Markup("<p>{}, summed over all seeds</p>").format(_label(best))
    return Section("Confusion", text + charts.confusion(report.task.outputs, np.sum(matrices, axis=0)))


def _calibration(report: TaskReport) -> Section | None:
    """Return the calibration errors, and the reliability diagram of the best rows."""
    lines = calibration_table(report)
    if len(lines) == 1:
        return None
    shown = calibrated(report.ranked(report.on_all_tiles))[:MOST_DRAWN]
    curves = [reliability(row) for row in shown]
    series = [(_label(row), points) for row, (points, _) in zip(shown, curves, strict=True)]
    bands = [intervals for _, intervals in curves]
    drawn = charts.lines("Accuracy over confidence", series, "confidence", bands=bands, are_shares=True)
    return Section("Calibration", html_table(lines) + _small(calibration_legend(report)) + drawn)


def _tables(report: TaskReport) -> list[Section]:
    """Return the tables that the task kind adds."""
    statistics = [result.statistics for result in report.best().results]
    return [Section(heading, html_table(rows)) for heading, rows in report.kind.tables(statistics)]


def _panels(report: TaskReport) -> Section | None:
    """Return a few test windows: the image, the label, and the prediction of the first seed of each row."""
    run, kind = report.run, report.kind
    shown = [row for row in _drawn(report) if row.results[0].maps.shape == run.labels.shape][:4]
    lines = []
    for at, (rgb, label) in enumerate(zip(run.rgb, run.labels, strict=True)):
        maps = [(_label(row), row.results[0].maps[at]) for row in shown]
        pictures = [(name, kind.picture(values, label)) for name, values in [("label", label), *maps]]
        if any(pixels is None for _, pixels in pictures):
            return None
        drawn = [("image", rgb), *((name, pixels) for name, pixels in pictures if pixels is not None)]
        lines.append([charts.image(pixels, f"test window {at + 1}, {name}") for name, pixels in drawn])
    legend = [charts.Key(name, color) for name, color in kind.legend()]
    return Section("Predictions", charts.panels(legend, ["image", "label", *map(_label, shown)], lines))


def _cost(report: TaskReport) -> Section:
    """Return what each row costs, the seconds of every part, summed over runs, and the settings of the best row."""
    total: dict[str, float] = {}
    for cost in report.costs.values():
        for part, seconds in cost.items():
            total[part] = total.get(part, 0.0) + seconds
    lines = [["part", "seconds"], *([part, f"{seconds:,.0f}"] for part, seconds in total.items())]
    best = report.best()
    chosen = ", ".join(
        f"seed {result.seed}: lr {result.lr:g}, epoch {result.epoch}"
        for result in best.results
        if result.lr is not None
    )
    low, high = (number(bound, report.primary) for bound in best.interval)
    text = f"Best: {_label(best)}, {low} to {high}" + (f" ({chosen})" if chosen else "")
    by_row = html_table(cost_table(report)) + _small(cost_legend(report))
    return Section("Cost", by_row + html_table(lines) + _small(f"{text}."))


def _drawn(report: TaskReport) -> list[Row]:
    """Return the best rows; probes of single layers have a chart of their own."""
    rows = report.ranked(report.on_all_tiles)
    return ([row for row in rows if probed_layer(row.protocol) is None] or rows)[:MOST_LINES]


def _label(row: Row) -> str:
    """Return a row's label, with the protocol first since encoder names are long and share prefixes."""
    return f"{row.name} · {row.label}"


def _small(text: str) -> Markup:
    return Markup('<p class="small">{}</p>').format(text)
