"""Retries for a storage that does not respond, with growing random pauses, up to a time limit.

After an outage a thousand ranks must not retry at the same instant, so every pause is random. A process logs two lines
per outage, however many threads wait: one when it lasts noticeably long, and one when it is over.
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
"""Time limit for retrying a read of tiles; below the watchdog's limit for a step (``watchdog.step``, 900 s)."""

OPENING_S = 30.0
"""Time limit for small files when a dataset is opened, so that a wrong address is reported soon."""

PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""The pause after attempt k is drawn uniformly from 0 to min(0.5 * 2**(k - 1), 30) seconds."""

WARN_S = 15.0
"""Waiting time after which a warning is logged."""

Result = TypeVar("Result")
_pauses = random.SystemRandom()  # seeded ranks would pause alike, and the global generator is the training's


class Trouble(Exception):
    """A failed attempt that may succeed later; its text is the reason, as part of a line."""


class Patience:
    """Retries for one storage, shared by all threads.

    Args:
        url: URL of the storage, for messages.
        sleep: waits for a number of seconds, or until the storage is closed.
    """

    def __init__(self, url: str, sleep: Callable[[float], Any] | None = None) -> None:
        self._url, self._closed = url, threading.Event()
        self.sleep = sleep or self._closed.wait
        self._warned, self._lock = False, threading.Lock()

    def close(self) -> None:
        """Wake up all waiting threads, which then raise an error."""
        self._closed.set()

    def repeat(
        self,
        where: str,
        failure: str,
        seconds: float,
        action: Callable[[], Result],
        advice: str = "check the network and the server",
    ) -> Result:
        """Call ``action`` until it stops raising Trouble, for at most ``seconds``, and return its result.

        Args:
            where: the file, for messages.
            failure: what the action fails to do, for messages: ``"can't be read at offset 5"``.
            advice: what to do when the time is up, for messages.

        Raises:
            UnreachableError: if the time is up or the storage was closed.
        """
        begin, slept, attempt = time.monotonic(), 0.0, 0
        while True:
            if self._closed.is_set():
                raise UnreachableError(f"{where}: {failure}: the dataset was closed")
            try:
                result = action()
            except Trouble as error:
                reason = str(error)
            else:
                self._warn_of_recovery(slept)
                return result
            attempt += 1
            waited = max(time.monotonic() - begin, slept)
            if waited >= seconds:
                tried = f"{attempt} attempt{'s' if attempt > 1 else ''} in {waited:.0f} s"
                raise UnreachableError(
                    f"{where}: {failure}: {tried}, the last one: {reason}; {advice}, and run the command again"
                )
            if waited >= WARN_S:
                self._warn_of_outage(where, waited, seconds, reason)
            pause = _pauses.uniform(0, min(PAUSE_S * 2 ** min(attempt - 1, 30), LONGEST_PAUSE_S))
            slept += pause
            self.sleep(pause)

    def _warn_of_outage(self, where: str, waited: float, seconds: float, reason: str) -> None:
        with self._lock:
            was_warned, self._warned = self._warned, True
        if not was_warned:
            logger.warning(f"{where}: no answer for {waited:.0f} s ({reason}); retrying for {seconds:.0f} s")

    def _warn_of_recovery(self, waited: float) -> None:
        if self._warned:  # checked without the lock, since every read passes here
            with self._lock:
                was_warned, self._warned = self._warned, False
            if was_warned:
                logger.warning(f"{self._url}: answers again after {waited:.0f} s of pauses")
