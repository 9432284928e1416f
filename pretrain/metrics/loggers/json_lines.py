"""Logging of scalars as JSON lines to ``metrics.jsonl`` in the run folder."""

import json

from pretrain.config.loggers import LoggerConfig
from pretrain.metrics.json_lines import METRICS_FILE, drop_after
from pretrain.metrics.loggers.logger import LoggedRun, Logger
from shards.files.journal import BestEffort, Journal


class JsonLines(Logger):
    """Appends one line to ``metrics.jsonl`` for each record; figures are not logged."""

    def __init__(self, config: LoggerConfig, run: LoggedRun) -> None:
        path = run.folder / METRICS_FILE
        with BestEffort(path):
            drop_after(path, run.first_step)
        self._journal = Journal(path)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._journal.append((json.dumps({"step": step, **values}) + "\n").encode())

    def sync(self) -> None:
        self._journal.sync()

    def close(self) -> None:
        self._journal.sync()
        self._journal.close()
