"""Waiting for a place that does not answer: retried after growing random pauses, told once, given up after minutes.

A thousand ranks that met one outage must not come back in the same instant, so every pause is drawn anew. What one
process's readers go through is told in two lines, however many threads wait: when it begins to hurt, and when it is
over.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from shards.console import get_logger
from shards.errors import UnreachableError

logger = get_logger(__name__)

PATIENCE_S = 600.0
"""How long a read of tiles is tried again; below the watchdog's limit of a step (``watchdog.step``, 900 s)."""

OPENING_S = 30.0
"""How long a small file is, when a dataset is opened: a wrong address is told soon."""

PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""After attempt k a pause evenly drawn from 0 to min(0.5 * 2**(k - 1), 30) seconds."""

TELL_S = 15.0
"""Waiting for so long is worth a line."""

Result = TypeVar("Result")
_pauses = random.SystemRandom()  # a seeded generator would make all ranks pause alike, and ours is the training's


class Trouble(Exception):
    """An attempt that failed and may succeed later; its text is the reason, as part of a line."""


class Patience:
    """The retries of one storage, by many threads.

    Args:
        url: of the storage, for messages.
        sleep: waits so many seconds, or less where the storage is closed meanwhile.
    """

    def __init__(self, url: str, sleep: Callable[[float], Any] | None = None) -> None:
        self._url, self._closed = url, threading.Event()
        self.sleep = sleep or self._closed.wait
        self._told, self._lock = False, threading.Lock()

    def close(self) -> None:
        """Ends the pauses of all who wait, with an error."""
        self._closed.set()

    def repeat(self, where: str, place: str, seconds: float, action: Callable[[], Result]) -> Result:
        """What ``action`` returns, tried again for ``seconds`` while it raises Trouble.

        Args:
            where: the file; place: in it; both for messages.

        Raises:
            UnreachableError: it was given up, or the storage was closed.
        """
        begin, slept, attempt = time.monotonic(), 0.0, 0
        while True:
            if self._closed.is_set():
                raise UnreachableError(f"{where}: can't be read{place}: the dataset was closed")
            try:
                result = action()
            except Trouble as error:
                reason = str(error)
            else:
                self._tell_end(slept)
                return result
            attempt += 1
            waited = max(time.monotonic() - begin, slept)
            if waited >= seconds:
                tried = f"{attempt} attempt{'s' if attempt > 1 else ''} in {waited:.0f} s"
                raise UnreachableError(
                    f"{where}: can't be read{place}: {tried}, the last one: {reason}; "
                    "check the network and the server, and start the command again"
                )
            if waited >= TELL_S:
                self._tell_begin(where, waited, seconds, reason)
            pause = _pauses.uniform(0, min(PAUSE_S * 2 ** min(attempt - 1, 30), LONGEST_PAUSE_S))
            slept += pause
            self.sleep(pause)

    def _tell_begin(self, where: str, waited: float, seconds: float, reason: str) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            logger.warning(f"{where}: no answer for {waited:.0f} s ({reason}); tried again for {seconds:.0f} s")

    def _tell_end(self, waited: float) -> None:
        if self._told:  # looked at without the lock: this is on every read's way
            with self._lock:
                told, self._told = self._told, False
            if told:
                logger.warning(f"{self._url}: answers again, after {waited:.0f} s of pauses")
