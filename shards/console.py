"""Console lines of every command: Python's ``logging`` below the name "spectralforge", with ranks.

INFO goes to stdout as it is, warnings and errors go to stderr with their level in front. INFO comes from rank 0 alone,
unless a command runs with ``--verbose``; a line of another rank begins with its number.
"""

import logging
import os
import sys
from contextlib import suppress

from tqdm import tqdm

NAME = "spectralforge"


def get_logger(module: str) -> logging.Logger:
    """Return the logger of a module: ``get_logger(__name__)``."""
    return logging.getLogger(f"{NAME}.{module}")


def set_verbosity(quiet: bool = False, verbose: bool = False) -> None:
    """Set what is shown: warnings and errors (``quiet``), INFO of rank 0 (neither), or everything (``verbose``)."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    logging.getLogger(NAME).setLevel(level)


def is_quiet() -> bool:
    """Return whether only warnings and errors are shown."""
    return not logging.getLogger(NAME).isEnabledFor(logging.INFO)


def launched_rank() -> int:
    """Return this process's rank from its launcher's environment, 0 where there is none."""
    return int(os.environ.get("RANK", "0"))


class ConsoleHandler(logging.Handler):
    """Write records to stdout or stderr, above a progress bar where one is shown; never a reason to fail."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this rank shows the record."""
        everything = logging.getLogger(NAME).isEnabledFor(logging.DEBUG)
        return launched_rank() == 0 or record.levelno >= logging.WARNING or everything

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with a level above INFO and a rank above 0 in front."""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        rank = f"rank {launched_rank()}: " if launched_rank() else ""
        return f"{level}{rank}{super().format(record)}"

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with suppress(OSError, ValueError):  # a log file on a full disk, or a terminal that was closed
            if sys.stderr.isatty():
                tqdm.write(self.format(record), file=stream)
                stream.flush()
            else:
                print(self.format(record), file=stream, flush=True)


def _attach_handler() -> None:
    """Show our lines, in commands and in notebooks, without touching the root logger of the application."""
    logger = logging.getLogger(NAME)
    logger.addHandler(ConsoleHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


_attach_handler()
