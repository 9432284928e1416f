"""Console output of all commands: Python's ``logging`` under the name "spectralforge", aware of ranks.

INFO records are written to stdout unchanged; warnings and errors are written to stderr with their level as a prefix.
Only rank 0 shows INFO records unless a command runs with ``--verbose``; lines of other ranks start with the rank.
"""

import logging
import os
import sys
from contextlib import suppress

from tqdm import tqdm

from shards.files.processes import rank_name

NAME = "spectralforge"


def get_logger(module: str) -> logging.Logger:
    """Return the logger of a module: ``get_logger(__name__)``."""
    return logging.getLogger(f"{NAME}.{module}")


def set_verbosity(quiet: bool = False, verbose: bool = False) -> None:
    """Show warnings and errors only (``quiet``), everything (``verbose``), or by default also INFO of rank 0."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    logging.getLogger(NAME).setLevel(level)


def is_quiet() -> bool:
    """Return whether only warnings and errors are shown."""
    return not logging.getLogger(NAME).isEnabledFor(logging.INFO)


def launched_rank() -> int:
    """Return the rank that the launcher set in the environment, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


class ConsoleHandler(logging.Handler):
    """Write records to stdout or stderr, above any progress bar; write errors are ignored."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this rank shows the record."""
        everything = logging.getLogger(NAME).isEnabledFor(logging.DEBUG)
        return launched_rank() == 0 or record.levelno >= logging.WARNING or everything

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, prefixed with levels above INFO and ranks above 0."""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        rank = f"{rank_name(launched_rank())}: " if launched_rank() else ""
        return f"{level}{rank}{super().format(record)}"

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with suppress(OSError, ValueError):  # the disk of the log file is full, or the terminal was closed
            if sys.stderr.isatty():
                tqdm.write(self.format(record), file=stream)
                stream.flush()
            else:
                print(self.format(record), file=stream, flush=True)


def _attach_handler() -> None:
    """Attach the handler, for commands and notebooks alike, without touching the application's root logger."""
    logger = logging.getLogger(NAME)
    logger.addHandler(ConsoleHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


_attach_handler()
