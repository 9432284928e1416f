"""Console lines of a run."""

from shards.console import get_logger

logger = get_logger(__name__)


def log(text: str) -> None:
    """Write a line: rank 0's always, unless --quiet; those of other ranks, with their number, under --verbose."""
    logger.info(text)


def duration(seconds: float) -> str:
    """Return ``"2h 05m"``, ``"3m 20s"`` or ``"12s"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
