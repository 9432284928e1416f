"""Progress of long commands: uniform progress bars, and counters shared by worker processes."""

import sys
from collections.abc import Iterable
from multiprocessing.context import BaseContext
from typing import Any

from tqdm import tqdm

from shards.console import is_quiet, launched_rank

TERMINAL_S, LOG_S = 0.5, 15.0
"""Seconds between updates of a bar."""


def progress(
    what: str, total: int | None, items: Iterable | None = None, unit: str = "tile", done: int = 0, show: bool = True
) -> tqdm:
    """Return a tqdm bar with count, rate and ETA that iterates over ``items`` or is advanced by ``update``.

    On a terminal it is redrawn twice a second. A log file gets a line every 15 s, and none for shorter work.
    Only rank 0 shows bars; ``--quiet`` hides them.

    Args:
        what: label of the bar.
        total: number of items, None if unknown.
        done: items completed by earlier runs.
        show: whether to show the bar.
    """
    terminal = sys.stderr.isatty()
    interval = TERMINAL_S if terminal else LOG_S
    return tqdm(
        items,
        total=total,
        initial=done,
        unit=unit,
        desc=what,
        mininterval=interval,
        maxinterval=interval,
        delay=0 if terminal else interval,
        smoothing=0.1,
        dynamic_ncols=terminal,
        file=sys.stderr if terminal else _Lines(),
        disable=not show or is_quiet() or launched_rank() > 0,
    )


class _Lines:
    """A file for tqdm that prints each state of a bar as a line on stderr instead of overwriting the previous one."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:
            print(line, file=sys.stderr, flush=True)
            self._last = line

    def flush(self) -> None:
        """Do nothing: each line is flushed when it is written."""


class Counters:
    """Counters of tiles done, pixel bytes read and shard bytes written, in memory shared by several processes.

    Args:
        context: multiprocessing context of the processes that share the counters; None for a single process.
    """

    def __init__(self, context: BaseContext | None = None) -> None:
        self.shared: Any = context.Array("q", 3) if context else None
        self._own = [0, 0, 0]

    def add(self, tiles: int, raw: int, stored: int) -> None:
        """Add tiles, the bytes of their pixels and the bytes of their encoded form."""
        if self.shared is None:
            self._own = [a + b for a, b in zip(self._own, (tiles, raw, stored), strict=True)]
            return
        with self.shared.get_lock():
            for i, value in enumerate((tiles, raw, stored)):
                self.shared[i] += value

    def values(self) -> tuple[int, int, int]:
        """Return (tiles, bytes in, bytes out) so far."""
        tiles, raw, stored = self._own if self.shared is None else self.shared[:]
        return tiles, raw, stored


class Bar:
    """A progress bar that follows counters and adds MB/s in, MB/s out and the compression ratio."""

    def __init__(self, counters: Counters, total: int | None, done: int, what: str) -> None:
        self._counters = counters
        self._bar = progress(what, total, done=done)
        self._initial = done

    def refresh(self) -> None:
        """Show the current values of the counters."""
        if self._bar.disable:
            return
        tiles, raw, stored = self._counters.values()
        elapsed = max(self._bar.format_dict["elapsed"], 1e-9)
        if stored:
            self._bar.set_postfix_str(
                f"{raw / elapsed / 1e6:.0f} MB/s in, {stored / elapsed / 1e6:.0f} out, {raw / stored:.2f}x",
                refresh=False,
            )
        self._bar.update(self._initial + tiles - self._bar.n)

    def close(self) -> None:
        """Show the final values and leave the bar on the screen."""
        self.refresh()
        self._bar.close()
