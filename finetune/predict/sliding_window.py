"""Overlapping windows over a scene of any size, blended into one map; only unfinished rows are kept in memory.

Each output belongs to a square cell of pixels: one pixel of a class map, one patch of a feature map. Where windows
overlap, a cell is their mean, weighted by a raised cosine: a window has most weight at its center, where it sees the
surroundings, and least at its border, which avoids visible seams.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from shards.sensors.sensor import NODATA

Read = Callable[[int, int], np.ndarray]
"""Maps (begin, end) to these rows of the scene, int16 (bands, end - begin, width)."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Maps windows, int16 (B, bands, size, size), to outputs of their cells, float32 (B, K, size / cell, size / cell)."""


@dataclass(frozen=True)
class WindowPlan:
    """Positions of windows on a scene.

    Attributes:
        height, width: size of the scene in pixels.
        size, step: window size, and step from one window to the next, in pixels.
        cell: side of a cell in pixels; divides both.
    """

    height: int
    width: int
    size: int
    step: int
    cell: int

    @property
    def grid(self) -> tuple[int, int]:
        """Number of cells down and across; the last ones may extend beyond the scene."""
        return -(-self.height // self.cell), -(-self.width // self.cell)

    @property
    def rows(self) -> list[int]:
        """First pixel row of each row of windows; the last row ends with the scene, up to a fraction of a cell."""
        return self._begins(self.height)

    @property
    def columns(self) -> list[int]:
        """First pixel column of each column of windows."""
        return self._begins(self.width)

    def _begins(self, length: int) -> list[int]:
        last = -(-max(0, length - self.size) // self.cell) * self.cell
        return [*range(0, last, self.step), last]


class Strip:
    """The pixels under one row of windows; beyond the scene there is no data.

    Attributes:
        values: int16 (bands, size, padded width).
        measured: bool (size, padded width), whether any band has a value.
    """

    def __init__(self, plan: WindowPlan, read: Read) -> None:
        self._plan, self._read, self._end = plan, read, 0
        self._padding = plan.columns[-1] + plan.size - plan.width
        self.values, self.measured = self._rows(0, plan.size)

    def move_down(self, rows: int) -> None:
        """Drop rows at the top and read as many at the bottom."""
        values, measured = self._rows(self._end, self._end + rows)
        self.values = np.concatenate([self.values[:, rows:], values], 1)
        self.measured = np.concatenate([self.measured[rows:], measured])

    def _rows(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        self._end = end
        values = self._read(begin, min(end, self._plan.height))
        missing = end - begin - values.shape[1]
        values = np.pad(values, ((0, 0), (0, missing), (0, self._padding)), constant_values=NODATA)
        return values, (values != NODATA).any(0)


class OpenRows:
    """Weighted sums of the cells under one row of windows.

    Args:
        channels: K outputs per cell.
    """

    def __init__(self, plan: WindowPlan, channels: int) -> None:
        side = plan.size // plan.cell
        cells = (plan.columns[-1] + plan.size) // plan.cell
        self._weight = window_weight(side)
        self._sums = np.zeros((channels, side, cells), np.float32)
        self._weights = np.zeros((side, cells), np.float32)

    def add(self, column: int, outputs: np.ndarray) -> None:
        """Add a window's outputs (K, side, side), starting at a column of cells."""
        window = np.s_[..., column : column + outputs.shape[-1]]
        self._sums[window] += outputs * self._weight
        self._weights[window] += self._weight

    def close(self, rows: int) -> np.ndarray:
        """Remove rows of cells at the top and return their weighted means (K, rows, cells), NaN outside windows."""
        weights = self._weights[:rows]
        means = np.full_like(self._sums[:, :rows], np.nan)
        np.divide(self._sums[:, :rows], weights, out=means, where=weights > 0)
        self._sums = np.concatenate([self._sums[:, rows:], np.zeros_like(means)], 1)
        self._weights = np.concatenate([self._weights[rows:], np.zeros_like(weights)])
        return means


def window_weight(side: int) -> np.ndarray:
    """Return a positive raised cosine, float32 (side, side); at half overlap, neighbors add up to one."""
    ramp = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    return np.outer(ramp, ramp).astype(np.float32)


def blend(
    plan: WindowPlan, read: Read, predict: Predict, channels: int, batch: int, done: Callable[[int, int], None]
) -> Iterator[np.ndarray]:
    """Predict all windows that hold data; yield rows of cells from the top as soon as no window can change them.

    Args:
        channels: K outputs per cell.
        batch: windows per batch.
        done: called after each step with the number of predicted windows and of windows without data.

    Yields:
        float32 (K, some rows, columns of the grid), NaN in cells where the scene has no data.
    """
    strip, open_rows = Strip(plan, read), OpenRows(plan, channels)
    down, right = plan.grid
    for number, begin in enumerate(plan.rows):
        columns = [x for x in plan.columns if strip.measured[:, x : x + plan.size].any()]
        done(0, len(plan.columns) - len(columns))
        for first in range(0, len(columns), batch):
            chunk = columns[first : first + batch]
            outputs = predict(np.stack([strip.values[:, :, x : x + plan.size] for x in chunk]))
            for x, output in zip(chunk, outputs, strict=True):
                open_rows.add(x // plan.cell, output)
            done(len(chunk), 0)
        last = number + 1 == len(plan.rows)
        move = plan.size if last else plan.rows[number + 1] - begin
        measured = _cells(strip.measured[:move], plan.cell)
        values = np.where(measured, open_rows.close(move // plan.cell), np.float32(np.nan))
        yield values[:, : down - begin // plan.cell, :right]
        if not last:
            strip.move_down(move)


def _cells(pixels: np.ndarray, cell: int) -> np.ndarray:
    """Reduce bool (H, W) to (H / cell, W / cell): whether any pixel of each cell is true."""
    height, width = pixels.shape
    return np.any(pixels.reshape(height // cell, cell, width // cell, cell), axis=(1, 3))
