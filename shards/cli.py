"""Options of the command line: one line for a wrong value, as for every other error."""

import argparse
import math
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        told = message.removeprefix("argument ").split(":", 1)
        option = told[0].split("/")[-1] if len(told) == 2 else ""
        line = f"{option}:{told[1]}" if option.startswith("-") else message
        print(f"error: {' '.join(line.split())}; `{self.prog} --help` lists the options", file=sys.stderr)
        sys.exit(2)


def positive(text: str) -> int:
    """A whole number above 0."""
    number = whole(text, "a whole number above 0")
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return number


def whole(text: str, wanted: str = "a whole number") -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}") from None


def share(text: str) -> float:
    """A share from 0 to 1."""
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 1")
    return number


def share_above_0(text: str) -> float:
    """A share above 0, up to 1."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share above 0 and up to 1")
    return number


def limit(text: str) -> float | None:
    """A share from 0 to 1, or ``none`` for no limit."""
    number = _number(text)
    if text != "none" and not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a share from 0 to 1 nor 'none'")
    return None if text == "none" else number


def part(text: str) -> tuple[int, int]:
    """``K/N``: part K of N."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"'{text}' is not K/N with K from 1 to N")
    return int(number), int(of)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
