"""Drawings for the page, as SVG and PNG inside HTML: they scale, follow the page's colors and need no network."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np

INK = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#718096", "#b7791f", "#2c7a7b")
"""Colors of rows in line charts; legible on light and dark ground."""


def bars(names: Sequence[str], colors: Sequence[str], rows: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """Horizontal bars, a group for each class or target, a bar for each row; values are shares of the longest."""
    values = [value for _, line in rows for value in line if value is not None]
    top = max([*values, 1e-9])
    parts = []
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        lines = []
        for label, line in rows:
            value = line[index]
            width = 0.0 if value is None else 100 * max(value, 0.0) / top
            told = "does not occur" if value is None else f"{value:.3f}"
            lines.append(
                f'<div class="bar" title="{escape(label)}: {told}"><span class="who">{escape(label)}</span>'
                f'<span class="track"><span class="fill" style="width:{width:.1f}%;background:{color}"></span></span>'
                f'<span class="value">{told if value is not None else "–"}</span></div>'
            )
        chip = f'<span class="chip" style="background:{color}"></span>'
        parts.append(f'<div class="group"><div class="class">{chip}{escape(name)}</div>{"".join(lines)}</div>')
    return f'<div class="bars">{"".join(parts)}</div>'


def lines(
    title: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    across: str,
    logarithmic: bool = False,
    bands: Sequence[Sequence[tuple[float, float]]] | None = None,
) -> str:
    """A line chart with points.

    Args:
        series: name and points (x, y) of each line.
        across: what x is.
        logarithmic: of x.
        bands: of each line, the interval (low, high) at each point.
    """
    points = [point for _, line in series for point in line]
    if not points:
        return ""
    lows = [low for band in bands or () for low, _ in band]
    highs = [high for band in bands or () for _, high in band]
    ys = [y for _, y in points] + lows + highs
    xs = [math.log10(x) if logarithmic else x for x, _ in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    margin = 0.06 * (high - low) or 0.05
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        share = ((math.log10(x) if logarithmic else x) - left) / ((right - left) or 1)
        return 46 + 500 * share, 210 - 190 * (y - low) / (high - low)

    drawn = [_grid(low, high)]
    for number, (name, line) in enumerate(series):
        color = INK[number % len(INK)]
        spots = [place(*point) for point in line]
        if bands is not None:
            edges = [place(x, one) for (x, _), (one, _) in zip(line, bands[number], strict=True)]
            edges += [place(x, two) for (x, _), (_, two) in reversed(list(zip(line, bands[number], strict=True)))]
            drawn.append(f'<polygon points="{_path(edges)}" fill="{color}" opacity="0.15"/>')
        drawn.append(f'<polyline points="{_path(spots)}" fill="none" stroke="{color}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in spots]
        drawn.append(f"<title>{escape(name)}</title>" if number == 0 else "")
    ticks = sorted({x for x, _ in points})
    ticks = ticks if len(ticks) <= 6 else [ticks[0], ticks[len(ticks) // 2], ticks[-1]]
    for tick in ticks:
        x, _ = place(tick, low)
        drawn.append(f'<text x="{x:.1f}" y="226" text-anchor="middle">{tick:g}</text>')
    drawn.append(f'<text x="296" y="242" text-anchor="middle">{escape(across)}</text>')
    picture = f'<svg viewBox="0 0 560 246" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{picture}{legend([name for name, _ in series])}</figure>"


def legend(names: Sequence[str], colors: Sequence[str] = INK) -> str:
    """Names with their colors."""
    chips = [
        f'<span class="key"><span class="chip" style="background:{colors[number % len(colors)]}"></span>'
        f"{escape(name)}</span>"
        for number, name in enumerate(names)
    ]
    return f'<div class="legend">{"".join(chips)}</div>'


def confusion(names: Sequence[str], matrix: np.ndarray) -> str:
    """A confusion matrix as a table, labels in rows, each row in percent of its labels."""
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for name, line, total in zip(names, shares, totals[:, 0], strict=True):
        cells = [
            f'<td style="--share:{share:.3f}" class="{"strong" if share > 0.55 else ""}">'
            f"{f'{100 * share:.0f}' if total else ''}</td>"
            for share in line
        ]
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll"><table class="confusion"><thead><tr><th>label \\ predicted, %</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def image(pixels: np.ndarray, alt: str) -> str:
    """uint8 (H, W, 3) as an inline PNG, enlarged without smoothing."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def colored(classes: np.ndarray, colors: Sequence[str]) -> np.ndarray:
    """Class indices (H, W) in their colors, uint8 (H, W, 3); gray where nothing counts."""
    table = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors] + [[190, 190, 190]]
    return np.array(table, np.uint8)[np.clip(classes, 0, len(colors))]


def _grid(low: float, high: float) -> str:
    """Horizontal lines with their values."""
    drawn = []
    for step in range(5):
        value = low + (high - low) * step / 4
        y = 210 - 190 * step / 4
        drawn.append(f'<line x1="46" x2="546" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        drawn.append(f'<text x="40" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    return "".join(drawn)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
