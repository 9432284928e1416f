"""The table of a spectral shift: encoders in rows, bands of the test tiles in columns."""

import math

from finetune.evaluation.neighbors import tested_bands
from finetune.evaluation.portion import Portion
from finetune.metrics.metric import lower_is_better
from finetune.report.rows import Row, TaskReport
from finetune.report.tables import UNDEFINED, cell

SHIFTED = (
    "Nearest neighbors of test tiles, seen through the bands of a column, among training tiles, seen through {train}. "
    "In parentheses, the share that is kept of the score without a shift."
)

Line = tuple[str, Portion, str]
"""What a line of the table has in common: label of the encoder, portion of the tiles, other settings."""


def shift_table(report: TaskReport) -> list[list[str]]:
    """Return head and rows of the table; only the head if there are no results."""
    groups = rows_by_bands(report)
    columns = list(dict.fromkeys(bands for rows in groups.values() for bands in rows))
    lines = [["checkpoint", "tiles", *columns]]
    for (label, portion, rest), rows in groups.items():
        cells = [_cell(rows.get(bands), rows.get(_train(rows)), report.primary) for bands in columns]
        lines.append([f"{label}{rest}", portion.name, *cells])
    return lines


def shift_legend(report: TaskReport) -> str:
    """Return the explanation of the table."""
    return SHIFTED.format(train=training_bands(report))


def rows_by_bands(report: TaskReport) -> dict[Line, dict[str, Row]]:
    """Return the rows of a spectral shift, by line and by the bands of the test tiles."""
    groups: dict[Line, dict[str, Row]] = {}
    for row in report.rows:
        if bands := tested_bands(row.protocol):
            groups.setdefault((row.label, row.portion, row.rest), {})[bands] = row
    return groups


def training_bands(report: TaskReport) -> str:
    """Return the band sets of the training tiles as text."""
    sets = {_train({bands: row}) for row in report.rows if (bands := tested_bands(row.protocol))}
    return " or ".join(f"'{bands}'" for bands in sorted(sets))


def _train(rows: dict[str, Row]) -> str:
    """Return the band set of the training tiles."""
    return str(next(iter(rows.values())).settings["training bands"])


def _cell(row: Row | None, unshifted: Row | None, metric: str) -> str:
    """Return the score with its interval, and the share that is kept."""
    if row is None:
        return UNDEFINED
    if unshifted is None or row is unshifted or lower_is_better(metric):
        return cell(row, metric)
    before = unshifted.mean(metric)
    kept = row.mean(metric) / before if before > 0 else math.nan
    text = cell(row, metric)
    return text.replace(" [", f" ({100 * kept:.0f} %) [", 1) if math.isfinite(kept) else text
