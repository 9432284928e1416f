"""A group of loggers with the interface of one."""

import time
from collections.abc import Callable, Sequence

from pretrain import distributed
from pretrain.config.loggers import LoggerConfig
from pretrain.metrics.loggers.logger import LoggedRun, Logger
from pretrain.registries import LOGGERS
from shards.errors import ForgeError
from shards.files.journal import BestEffort

PAUSE_S = 60.0
"""Seconds without calls to a logger after an error, so that an unresponsive server does not delay every step."""


class Loggers:
    """The loggers of a run; on ranks other than 0 every method does nothing.

    Args:
        configs: one config for each logger.
        run: run to log.

    Raises:
        ConfigError: on every rank, if a logger's package is missing.
    """

    def __init__(self, configs: Sequence[LoggerConfig], run: LoggedRun) -> None:
        def build() -> list[_Sink]:
            return [_Sink(config, run) for config in configs] if distributed.is_main() else []

        self._sinks = distributed.raise_on_all_ranks(build)

    def record(self, step: int, scalars: dict[str, float]) -> None:
        """Log the scalars of a step."""
        for sink in self._sinks if scalars else ():
            sink.call(lambda logger: logger.scalars(step, scalars))

    def figure(self, step: int, name: str, png: bytes) -> None:
        """Log a figure, as PNG."""
        for sink in self._sinks:
            sink.call(lambda logger: logger.figure(step, name, png))

    def text(self, step: int, name: str, text: str) -> None:
        """Log a line of text."""
        for sink in self._sinks:
            sink.call(lambda logger: logger.text(step, name, text))

    def sync(self) -> None:
        """Make the records so far survive a failure of the node."""
        for sink in self._sinks:
            sink.call(lambda logger: logger.sync())

    def close(self) -> None:
        """Close all loggers."""
        for sink in self._sinks:
            sink.call(lambda logger: logger.close())
        self._sinks = []


class _Sink:
    """A logger whose errors are reported in one line."""

    def __init__(self, config: LoggerConfig, run: LoggedRun) -> None:
        self._effort = BestEffort(f"logger {config.name}", Exception)
        self._logger: Logger | None = None
        self._paused_until = 0.0
        try:
            self._logger = LOGGERS[config.name](config, run)
        except ForgeError:
            raise
        except Exception as error:  # e.g. no network, no account: the run continues without this logger
            with self._effort:
                raise error

    def call(self, method: Callable[[Logger], None]) -> None:
        if self._logger is None or time.monotonic() < self._paused_until:
            return
        self._paused_until = time.monotonic() + PAUSE_S
        with self._effort:
            method(self._logger)
            self._paused_until = 0.0
