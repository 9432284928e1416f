"""A row of the table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        check: what was checked.
        figure: what came out.
        expected: what it is compared with, empty where nothing is.
        ok: whether it holds; None for figures without a right answer.
    """

    check: str
    figure: str
    expected: str = ""
    ok: bool | None = None


Checks = Callable[[torch.device, float], Iterator[Row]]
"""A group of checks: from the device and the seconds it may take to its rows, each yielded when it is known."""


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference, relative to that of the expected values."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return ((actual - expected).norm() / expected.norm()).item()


def error_row(check: str, error: float, tolerance: float) -> Row:
    """Return the row of a numerical comparison; NaN never holds."""
    return Row(check, f"error {error:.1e}", f"<= {tolerance:.0e}", error <= tolerance)
