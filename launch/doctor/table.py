"""Rows of the doctor's table: finding, state, and fix."""

import os
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import Literal

State = Literal["green", "yellow", "red"]

_CODES = {"green": "\033[32m", "yellow": "\033[33m", "red": "\033[31m"}
_RESET = "\033[0m"
_INDENT = 28


@dataclass(frozen=True)
class Row:
    """One check's result.

    Attributes:
        state: green; yellow: a warning, or not checkable here; red: a run would fail or crawl.
        found: finding in one line.
        fix: how to fix yellow or red.
        details: more lines, shown with --verbose.
    """

    state: State
    found: str
    fix: str = ""
    details: str = ""


def worst(*states: State) -> State:
    """Return the worst of some states; green if there are none."""
    order: tuple[State, ...] = ("green", "yellow", "red")
    return max(states, key=order.index, default="green")


class Printer:
    """Prints rows as they come.

    Args:
        is_main: whether this is rank 0; other ranks print nothing.
        verbose: whether to show details.
    """

    def __init__(self, is_main: bool, verbose: bool) -> None:
        terminal = sys.stdout.isatty()
        self._is_main, self._verbose = is_main, verbose
        self._width = shutil.get_terminal_size().columns if terminal else None
        self._color = terminal and not os.environ.get("NO_COLOR")  # https://no-color.org

    def __call__(self, name: str, row: Row) -> None:
        self.line(render(name, row, self._width, self._color, self._verbose))

    def line(self, text: str) -> None:
        if self._is_main:
            print(text, flush=True)


def render(name: str, row: Row, width: int | None = None, color: bool = False, verbose: bool = False) -> str:
    """Return a row as text in lines of ``width`` characters; None uses one line each for finding and fix."""
    state = f"{row.state:<7}"
    if color:
        state = f"{_CODES[row.state]}{state}{_RESET}"
    lines = _fold(row.found, width)
    if row.fix:
        lines += _fold(f"fix: {row.fix}", width)
    if verbose:
        lines += row.details.splitlines()
    return f"{name:<19} {state} " + f"\n{'':{_INDENT}}".join(lines)


def summary(states: list[State]) -> str:
    """Return the table's last line."""
    return ", ".join(f"{states.count(state)} {state}" for state in ("green", "yellow", "red"))


def _fold(text: str, width: int | None) -> list[str]:
    if width is None or len(text) + _INDENT <= width:
        return [text]
    return textwrap.wrap(text, max(width - _INDENT, 40), break_long_words=False, break_on_hyphens=False)
