"""Shared by all commands: a parser with one-line errors, option types, and exit codes."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from shards.console import get_logger, set_verbosity
from shards.errors import ForgeError
from shards.files.system_errors import MACHINE, error_text, remedy
from shards.plugins import load_plugins

logger = get_logger(__name__)


class Parser(argparse.ArgumentParser):
    """An argument parser with ``--quiet`` and ``--verbose`` that reports errors in one line, without the usage.

    Args:
        plugins: add ``--plugins``, for commands without a config file that lists plugins.
    """

    def __init__(self, *arguments: Any, plugins: bool = True, **options: Any) -> None:
        super().__init__(*arguments, **({"allow_abbrev": False} | options))
        for flag, shown in (("quiet", "show warnings and errors only"), ("verbose", "show details, of all ranks")):
            # SUPPRESS: a subcommand's default would override an option given before the subcommand
            self.add_argument(f"--{flag}", action="store_true", default=argparse.SUPPRESS, help=shown)
        if plugins:
            self.add_argument(
                "--plugins",
                type=lambda text: text.split(","),
                default=argparse.SUPPRESS,
                metavar="NAME,...",
                help="modules and .py files to import first, which register codecs, encoders and the like",
            )

    def error(self, message: str) -> NoReturn:
        """Print one line that names the option, and exit with code 2."""
        named, _, reason = message.removeprefix("argument ").partition(":")
        option = named.split("/")[-1]
        line = f"{option}:{reason}" if option.startswith("-") and reason else message
        logger.error(f"{' '.join(line.split())}; `{self.prog} --help` lists the options")
        sys.exit(2)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, kept: str = "") -> int:
    """Parse a command line, call the parser's default ``run``, and return the exit code.

    Args:
        parser: has ``set_defaults(run=function)``; the function takes the arguments and returns an exit code or None.
        argv: command line without the program's name; ``sys.argv`` if None.
        kept: what an interrupted command leaves behind, appended to its last line, e.g. "finished shards are kept".
    """
    arguments = parser.parse_args(argv)
    apply_verbosity(arguments)

    def run() -> int | None:
        load_plugins(getattr(arguments, "plugins", ()), "--plugins")
        return arguments.run(arguments)

    return exit_code(run, kept)


def apply_verbosity(arguments: argparse.Namespace) -> None:
    """Set the console's verbosity from ``--quiet`` and ``--verbose``."""
    set_verbosity(getattr(arguments, "quiet", False), getattr(arguments, "verbose", False))


def exit_code(command: Callable[[], int | None], kept: str = "") -> int:
    """Call ``command`` and return its exit code; report errors that the user can fix, and Ctrl-C, in one line.

    Returns:
        The command's own code (0 for None), ``ForgeError.exit_code``, 1 for an OSError, 130 for Ctrl-C.
    """
    try:
        return command() or 0
    except ForgeError as error:
        logger.error(str(error))
        logger.debug("raised here:", exc_info=True)
        return error.exit_code
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has exited
        sys.stdout = open(os.devnull, "w")
        return 1
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        advice = f": {remedy(error, error.filename or '.')}" if error.errno in MACHINE else ""
        logger.error(f"{name}{error_text(error)}{advice}{'; ' if kept else ''}{kept}")
        logger.debug("raised here:", exc_info=True)
        return 1
    except KeyboardInterrupt:
        logger.warning(f"stopped{': ' if kept else ''}{kept}")
        return 130


def positive(text: str) -> int:
    """Parse an integer above 0."""
    number = whole_number(text, "a whole number above 0")
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return number


def not_negative(text: str) -> int:
    """Parse a non-negative integer."""
    number = whole_number(text, "a whole number from 0")
    if number < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0")
    return number


def whole_number(text: str, expected: str = "a whole number") -> int:
    """Parse an integer."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not {expected}") from None


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def share(text: str) -> float:
    """Parse a fraction in [0, 1]."""
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 1")
    return number


def share_above_0(text: str) -> float:
    """Parse a fraction in (0, 1]."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share above 0 and up to 1")
    return number


def share_below_1(text: str) -> float:
    """Parse a fraction in [0, 1)."""
    number = _number(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 and below 1")
    return number


def limit(text: str) -> float | None:
    """Parse a fraction in [0, 1], or ``none`` for no limit."""
    number = _number(text)
    if text != "none" and not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a share from 0 to 1 nor 'none'")
    return None if text == "none" else number


def part(text: str) -> tuple[int, int]:
    """Parse ``K/N``: part K of N."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"'{text}' is not K/N with K from 1 to N")
    return int(number), int(of)


def name_list(text: str) -> tuple[str, ...]:
    """Parse names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
