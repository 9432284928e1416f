"""Commands: options that every parser has, errors in one line, exit codes."""

import argparse

import pytest

from shards.cli import Parser, positive, run_command
from shards.console import get_logger, set_verbosity
from shards.errors import ConfigError, TooManyBadTiles


@pytest.fixture(autouse=True)
def default_verbosity():
    yield
    set_verbosity()


def run(command, *words: str) -> int:
    parser = Parser(prog="prog")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("one")
    one.add_argument("--number", type=positive)
    one.set_defaults(run=command)
    return run_command(parser, words, kept="all files are kept")


def raising(error: BaseException):
    def command(arguments: argparse.Namespace) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("key 'a': wrong"), 2, "error: key 'a': wrong\n"),
        (TooManyBadTiles("3 of 4"), 1, "error: 3 of 4\n"),
        (FileNotFoundError(2, "No such file", "x.tif"), 1, "error: x.tif: No such file; all files are kept\n"),
        (KeyboardInterrupt(), 130, "warning: stopped: all files are kept\n"),
    ],
)
def test_errors_that_a_user_can_fix_are_one_line(capsys, error: BaseException, code: int, line: str) -> None:
    assert run(raising(error), "one") == code
    assert capsys.readouterr().err == line


def test_verbose_shows_where_an_error_was_raised(capsys) -> None:
    assert run(raising(ConfigError("wrong")), "one", "--verbose") == 2
    shown = capsys.readouterr()
    assert shown.err == "error: wrong\n" and "Traceback" in shown.out


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()), "one")


@pytest.mark.parametrize("code", [None, 0, 1])
def test_the_code_is_the_commands_own(code: int | None) -> None:
    assert run(lambda arguments: code, "one") == (code or 0)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["one", "--number", "0"], "error: --number: '0' is not a whole number above 0; `prog one --help` lists"),
        (["one", "--numbr", "1"], "error: unrecognized arguments: --numbr 1; `prog --help` lists the options"),
    ],
)
def test_misuse_is_one_line(capsys, words: list[str], line: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda arguments: 0, *words)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


@pytest.mark.parametrize("words", [["--quiet", "one"], ["one", "--quiet"]])
def test_quiet_stands_before_or_after_the_subcommand(capsys, words: list[str]) -> None:
    def command(arguments: argparse.Namespace) -> None:
        get_logger("test").info("progress")
        get_logger("test").warning("trouble")
        print("result")

    assert run(command, *words) == 0
    assert capsys.readouterr() == ("result\n", "warning: trouble\n")


@pytest.mark.parametrize(
    ("rank", "verbose", "shown"),
    [
        ("0", False, ("step 1\n", "warning: slow\n")),
        ("3", False, ("", "warning: rank 3 on n02: slow\n")),
        ("3", True, ("rank 3 on n02: step 1\n", "warning: rank 3 on n02: slow\n")),
    ],
)
def test_lines_of_ranks(capsys, monkeypatch, rank: str, verbose: bool, shown: tuple[str, str]) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("SLURMD_NODENAME", "n02")
    set_verbosity(verbose=verbose)
    get_logger("test").info("step 1")
    get_logger("test").warning("slow")
    assert capsys.readouterr() == shown
