"""Time limits: a rank that doesn't answer, or a network that drops packets, must not hang the doctor."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def time_limit(seconds: float, report: Callable[[], None]) -> Iterator[None]:
    """Call ``report()`` and end the process with code 1 if the block exceeds the limit.

    The limit runs in a thread: most hangs are in collectives, which exceptions can't interrupt.
    """

    def give_up() -> None:
        report()
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
