"""Scores of linear probes over the depth of an encoder."""

from finetune.evaluation.layers import probed_layer
from finetune.evaluation.portion import Portion
from finetune.report.rows import Row, TaskReport
from finetune.report.tables import UNDEFINED, cell, title

LEGEND = (
    "Linear heads on the frozen features of single layers, counted from 0; the last one is what other protocols get{}. "
    "The best layer is chosen by the validation tiles."
)
POOLED = ", but for the class token of a transformer: here, features are means over positions"

Line = tuple[str, Portion, str]
"""What the layers of a line have in common: label of the encoder, portion of the tiles, other settings."""


def rows_by_layer(report: TaskReport) -> dict[Line, dict[int, Row]]:
    """Return the rows of encoders of which several layers were probed, by line and by layer, ascending."""
    groups: dict[Line, dict[int, Row]] = {}
    for row in report.rows:
        if (layer := probed_layer(row.protocol)) is not None:
            groups.setdefault((row.label, row.portion, row.rest), {})[layer] = row
    return {line: dict(sorted(rows.items())) for line, rows in groups.items() if len(rows) > 1}


def depth_table(report: TaskReport) -> list[list[str]]:
    """Return head and rows of the table, a column for each encoder; only the head if there are no results."""
    groups = rows_by_layer(report)
    lines = [["layer", *(line_name(line) for line in groups)]]
    for layer in sorted({layer for rows in groups.values() for layer in rows}):
        cells = [cell(rows[layer], report.primary) if layer in rows else UNDEFINED for rows in groups.values()]
        lines.append([str(layer), *cells])
    return lines


def depth_sentences(report: TaskReport) -> list[str]:
    """Return a sentence for each encoder: its best layer, and how its last one compares."""
    sentences = []
    for line, rows in rows_by_layer(report).items():
        last = max(rows)
        best = report.ranked_by_validation(list(rows.values()))[0]
        number = probed_layer(best.protocol)
        scores = f"is best on the validation tiles: test {title(report.primary)} {cell(best, report.primary)}"
        if number == last:
            sentences.append(f"{line_name(line)}: the last layer, {last}, {scores}.")
        else:
            other = cell(rows[last], report.primary)
            sentences.append(f"{line_name(line)}: layer {number} {scores}; the last layer, {last}: {other}.")
    return sentences


def depth_legend(report: TaskReport) -> str:
    """Return the explanation of the table and the chart."""
    return LEGEND.format("" if report.kind.is_dense else POOLED)


def line_name(line: Line) -> str:
    """Return the name of a line."""
    label, portion, rest = line
    share = "" if portion.is_all else f" · {portion.of_tiles}"
    return f"{label}{rest}{share}"
