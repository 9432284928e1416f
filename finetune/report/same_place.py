"""The table of the same place through two sensors: measures of each encoder in rows, bands of the test tiles in
columns."""

from finetune.evaluation.neighbors import SAME_PLACE
from finetune.metrics.resampled import mean_of_tiles
from finetune.metrics.statistics import bootstrap_interval
from finetune.report.rows import Row, TaskReport
from finetune.report.shift import rows_by_bands, training_bands
from finetune.report.tables import UNDEFINED, number, spread, title

LEGEND = (
    "The same place through two sensors. Test tiles and their patches, seen through the bands of a column, are "
    "searched for by cosine similarity among all tiles and their patches, seen through {}. In percent, how often the "
    "same place is the nearest; below, the similarity to the same place, and in parentheses to other places."
)


def same_place_table(report: TaskReport) -> list[list[str]]:
    """Return head and rows of the table; only the head if there are no results."""
    groups = {}
    for line, rows in rows_by_bands(report).items():
        groups[line] = {bands: row for bands, row in rows.items() if all(each.same_place.size for each in row.results)}
    columns = list(dict.fromkeys(bands for rows in groups.values() for bands in rows))
    lines = [["checkpoint", "tiles", "measure", *columns]]
    for (label, portion, rest), rows in groups.items():
        for unit in ("tile", "patch"):
            if any(row.values(f"{unit}_top1") for row in rows.values()):
                start, found = [f"{label}{rest}", portion.name], [rows.get(bands) for bands in columns]
                lines.append([*start, _title(unit, list(rows.values())), *(_nearest(row, unit) for row in found)])
                lines.append([*start, title(f"{unit}_cosine"), *(_cosines(row, unit) for row in found)])
    return lines


def same_place_legend(report: TaskReport) -> str:
    """Return the explanation of the table."""
    return LEGEND.format(training_bands(report))


def _title(unit: str, rows: list[Row]) -> str:
    chances = sorted({number(row.mean(f"{unit}_chance"), f"{unit}_chance") for row in rows})
    return f"{title(f'{unit}_top1')} (by chance {', '.join(chances)})"


def _nearest(row: Row | None, unit: str) -> str:
    """Return how often the same place is the nearest, with the interval over test places."""
    if row is None:
        return UNDEFINED
    metric = f"{unit}_top1"
    of_tiles = [result.same_place[:, SAME_PLACE.index(metric)] for result in row.results]
    low, high = (number(bound, metric) for bound in bootstrap_interval(mean_of_tiles, of_tiles, row.run.places))
    return f"{spread(row, metric)} [{low}, {high}]"


def _cosines(row: Row | None, unit: str) -> str:
    """Return the similarity to the same place, and to others."""
    if row is None:
        return UNDEFINED
    same, others = f"{unit}_cosine", f"{unit}_elsewhere"
    return f"{number(row.mean(same), same)} ({number(row.mean(others), others)})"
