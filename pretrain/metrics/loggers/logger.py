"""The interface of loggers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.config.loggers import LoggerConfig
from shards.errors import ConfigError
from shards.files.atomic import write_atomic


@dataclass(frozen=True)
class LoggedRun:
    """The information on a run that loggers receive.

    Attributes:
        folder: run folder.
        first_step: step that the run starts or resumes from. Records of later steps are left over from a process that
            died after its last checkpoint, and these steps are logged again.
        config: config of the run as JSON types.
    """

    folder: Path
    first_step: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    def read_id(self, logger: str) -> str | None:
        """Return the ID that a tracking service gave this run, or None before `write_id`."""
        path = self._id_file(logger)
        return path.read_text(encoding="utf-8").strip() or None if path.exists() else None

    def write_id(self, logger: str, run_id: str) -> None:
        """Store an ID in the run folder, so that a resumed run continues the same run of the service."""
        write_atomic(self._id_file(logger), f"{run_id}\n")

    def _id_file(self, logger: str) -> Path:
        return self.folder / f"{logger}-run-id.txt"


class Logger(ABC):
    """The base class of loggers, which record scalars and figures of a run on rank 0 only.

    Exceptions that a logger raises are reported in one line, and the run continues without that record. A ConfigError
    raised by ``__init__`` ends the run before it starts.

    Args:
        config: options of the logger.
        run: run to log.
    """

    @abstractmethod
    def __init__(self, config: LoggerConfig, run: LoggedRun) -> None: ...

    @abstractmethod
    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step; a step may have several records with different names."""

    def figure(self, step: int, name: str, png: bytes) -> None:  # noqa: B027  # optional
        """Log a figure, as PNG."""

    def text(self, step: int, name: str, text: str) -> None:  # noqa: B027  # optional
        """Log a line of text."""

    def sync(self) -> None:  # noqa: B027  # optional
        """Make the records so far survive a failure of the node; called before each checkpoint, which counts on it."""

    def close(self) -> None:  # noqa: B027  # optional
        """Flush buffers; called once, when the run ends or fails."""


def missing_package(logger: str, package: str) -> ConfigError:
    """Return the error of a logger whose package is not installed."""
    return ConfigError(
        f"key 'log.loggers': {logger} needs the package {package}: pip install 'spectralforge[loggers]', or remove "
        f"{logger}"
    )
