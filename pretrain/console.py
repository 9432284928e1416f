"""Console lines of a run: rank 0 only, and never a reason to fail."""

from contextlib import suppress

from pretrain import distributed


def log(text: str) -> None:
    """A line on rank 0's console."""
    if distributed.is_main():
        with suppress(OSError):  # a log file on a full disk, or a terminal that was closed
            print(text, flush=True)


def duration(seconds: float) -> str:
    """``"2h 05m"``, ``"3m 20s"`` or ``"12s"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
