"""Tables and charts of the page as SVG and inline PNG, which scale, follow the page's colors and need no network.

These functions compute positions, widths and colors; ``templates/charts.html`` holds the markup.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Environment(
    loader=PackageLoader("finetune.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_MACROS: Any = TEMPLATES.get_template("charts.html").module

INK = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#718096", "#b7791f", "#2c7a7b")
"""Colors of the rows in line charts, legible on light and dark backgrounds."""

LEFT, RIGHT, TOP, BOTTOM = 46, 546, 20, 210
"""Edges of a line chart's plot area within its 560 x 246 view box."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        interval: shown in small print below the text; "" for none.
        is_better: whether the cell carries the flag "better than random init".
        is_best: whether the cell is bold.
    """

    text: str
    interval: str = ""
    is_better: bool = False
    is_best: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a chart, in the coordinates of the view box.

    Attributes:
        band: the outline of the interval around the line as SVG points; "" for none.
    """

    name: str
    color: str
    points: list[Point]
    band: str

    @property
    def path(self) -> str:
        """The points in SVG syntax."""
        return _path(self.points)


@dataclass(frozen=True)
class Key:
    """A name and its color in a legend."""

    name: str
    color: str


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], kind: str = "") -> Markup:
    """Return a table with row names in the first column.

    Args:
        kind: the table's CSS class.
    """
    return _MACROS.table(head, rows, kind)


def bars(names: Sequence[str], colors: Sequence[str], rows: Sequence[tuple[str, Sequence[float | None]]]) -> Markup:
    """Return horizontal bars, one group per class or target and one bar per row, scaled to the longest bar.

    Args:
        rows: label of each row, and its value for each name; None if a class does not occur.
    """
    top = max([1e-9, *(value for _, values in rows for value in values if value is not None)])
    groups = [
        (
            name,
            color,
            [(label, values[index], 100 * max(values[index] or 0.0, 0.0) / top) for label, values in rows],
        )
        for index, (name, color) in enumerate(zip(names, colors, strict=True))
    ]
    return _MACROS.bars(groups)


def lines(
    title: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    across: str,
    logarithmic: bool = False,
    bands: Sequence[Sequence[Point]] | None = None,
    are_shares: bool = False,
) -> Markup:
    """Return a line chart with points; empty if there are no points.

    Args:
        series: name and points (x, y) of each line.
        across: label of the x axis.
        logarithmic: whether the x axis is logarithmic.
        bands: interval (low, high) at each point of each line.
        are_shares: whether both axes range from 0 to 1, with a dashed line where they are equal.
    """
    points = [point for _, line in series for point in line]
    if not points:
        return Markup("")
    xs = [math.log10(x) if logarithmic else x for x, _ in points]
    ys = [y for _, y in points] + [end for band in bands or () for interval in band for end in interval]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    margin = 0.06 * (high - low) or 0.05
    low, high = low - margin, high + margin
    if are_shares:
        left, right, low, high = 0.0, 1.0, 0.0, 1.0

    def place(x: float, y: float) -> Point:
        share = ((math.log10(x) if logarithmic else x) - left) / ((right - left) or 1)
        return LEFT + (RIGHT - LEFT) * share, BOTTOM - (BOTTOM - TOP) * (y - low) / (high - low)

    drawn = []
    for number, (name, line) in enumerate(series):
        outline: list[Point] = []
        if bands is not None:
            lower = [place(x, start) for (x, _), (start, _) in zip(line, bands[number], strict=True)]
            upper = [place(x, end) for (x, _), (_, end) in zip(line, bands[number], strict=True)]
            outline = lower + upper[::-1]
        drawn.append(Line(name, INK[number % len(INK)], [place(*point) for point in line], _path(outline)))
    values = [low + (high - low) * step / 4 for step in range(5)]
    grid = [(place(points[0][0], value)[1], value) for value in values]
    ticks = [(place(x, low)[0], x) for x in ((0, 0.25, 0.5, 0.75, 1) if are_shares else _ticks(points))]
    diagonal = _path([place(0, 0), place(1, 1)]) if are_shares else ""
    return _MACROS.lines(title, across, grid, ticks, drawn, diagonal)


def confusion(names: Sequence[str], matrix: np.ndarray) -> Markup:
    """Return a confusion matrix as a table, one row per label, each row in percent of its pixels.

    Args:
        matrix: counts (labels, predictions).
    """
    rows = []
    for name, counts in zip(names, matrix.astype(np.float64), strict=True):
        total = counts.sum()
        rows.append((name, (counts / total).tolist() if total else [None] * len(counts)))
    return _MACROS.confusion(names, rows)


def panels(legend: Sequence[Key], head: Sequence[str], rows: Sequence[Sequence[Markup]]) -> Markup:
    """Return rows of images below a legend."""
    return _MACROS.panels(legend, head, rows)


def image(pixels: np.ndarray, alt: str) -> Markup:
    """Return uint8 pixels (H, W, 3) as an inline PNG, enlarged without smoothing."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return _MACROS.image(base64.b64encode(buffer.getvalue()).decode(), alt)


def _ticks(points: Sequence[Point]) -> list[float]:
    """Return all positions on the x axis, or the first, middle and last if there are many."""
    xs = sorted({x for x, _ in points})
    return xs if len(xs) <= 6 else [xs[0], xs[len(xs) // 2], xs[-1]]


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
