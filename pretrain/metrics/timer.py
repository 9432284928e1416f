"""Wall-clock time between log steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """What happened between two log steps.

    Attributes:
        steps: optimizer steps.
        seconds: wall-clock time, pauses excluded.
        increments: growth of each counter.
    """

    steps: int
    seconds: float
    increments: dict[str, float]


class Timer:
    """Times the steps of a run; time spent in `pause` doesn't count.

    Args:
        step: optimizer steps taken before the run starts or resumes.
    """

    def __init__(self, step: int = 0) -> None:
        self._counters: dict[str, float] = {}
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start an interval at ``step``."""
        self._step, self._time = step, time.monotonic()

    def read(self, step: int, **counters: float) -> Interval:
        """Return the interval that ends at ``step`` and start the next one.

        Args:
            step: optimizer steps taken so far.
            counters: running totals, such as seconds spent waiting or bytes read.
        """
        now = time.monotonic()
        increments = {name: total - self._counters.get(name, 0.0) for name, total in counters.items()}
        interval = Interval(step - self._step, max(now - self._time, 1e-9), increments)
        self._step, self._time, self._counters = step, now, counters
        return interval

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the enclosed time, such as evaluations and checkpoints."""
        begin = time.monotonic()
        yield
        self._time += time.monotonic() - begin
