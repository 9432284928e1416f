"""What worker processes have done so far, for one progress bar: counters in shared memory."""

import sys
from multiprocessing.context import BaseContext
from typing import Any

from tqdm import tqdm


class Counters:
    """Tiles done, bytes of pixels in, bytes of shard out; several processes add, one shows.

    Args:
        context: of the processes that share the counters; None for this one alone.
    """

    def __init__(self, context: BaseContext | None = None) -> None:
        self.shared: Any = context.Array("q", 3) if context else None
        self._own = [0, 0, 0]

    def add(self, tiles: int, raw: int, stored: int) -> None:
        """Count tiles, their pixels in bytes and their encoded size in bytes."""
        if self.shared is None:
            self._own = [a + b for a, b in zip(self._own, (tiles, raw, stored), strict=True)]
            return
        with self.shared.get_lock():
            for i, value in enumerate((tiles, raw, stored)):
                self.shared[i] += value

    def values(self) -> tuple[int, int, int]:
        """(tiles, bytes in, bytes out) so far."""
        tiles, raw, stored = self._own if self.shared is None else self.shared[:]
        return tiles, raw, stored


class Bar:
    """A tqdm bar that follows counters: tiles/s, ETA, MB/s in and out, ratio. In a log file a line every 15 s."""

    def __init__(self, counters: Counters, total: int | None, done: int, what: str) -> None:
        interval = 0.5 if sys.stderr.isatty() else 15.0
        self._counters = counters
        self._bar = tqdm(
            total=total, initial=done, unit="tile", desc=what, mininterval=interval, maxinterval=interval, smoothing=0.1
        )
        self._initial = done

    def refresh(self) -> None:
        """Show what the counters say now."""
        tiles, raw, stored = self._counters.values()
        elapsed = max(self._bar.format_dict["elapsed"], 1e-9)
        if stored:
            self._bar.set_postfix_str(
                f"{raw / elapsed / 1e6:.0f} MB/s in, {stored / elapsed / 1e6:.0f} out, {raw / stored:.2f}x",
                refresh=False,
            )
        self._bar.update(self._initial + tiles - self._bar.n)

    def close(self) -> None:
        self.refresh()
        self._bar.close()
