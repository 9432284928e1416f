"""What a command says where it refuses its arguments."""

from collections.abc import Callable

import pytest


def error_lines(text: str) -> list[str]:
    """Return the lines of stderr that begin with "error:"."""
    return [line for line in text.splitlines() if line.startswith("error:")]


def refused(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with status 2; return its one line on stderr."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error
