"""`python -m finetune board DIR`: a leaderboard of the results of many labs; see leaderboard.py."""

import argparse
import json
from pathlib import Path

from shards.console import get_logger
from shards.errors import ConfigError
from shards.files.atomic import write_atomic

logger = get_logger(__name__)

REFERENCE = "reference"
"""Folder of the evaluations with which the data of all others are compared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", nargs="?", type=Path, help=f"{REFERENCE}/ and a folder for each lab")
    parser.add_argument("--output", type=Path, help="folder of board.html and board.md (default: the first argument)")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of results.json and exit")


def run(arguments: argparse.Namespace) -> int:
    """Write the page, and return the exit code: 1 if some results are refused.

    Raises:
        ConfigError: there is no reference.
    """
    from finetune.evaluation.results import results_schema
    from finetune.report.leaderboard import read_board
    from finetune.report.leaderboard_page import markdown, page

    if arguments.schema:
        print(json.dumps(results_schema(), indent=1))
        return 0
    if arguments.folder is None:
        raise ConfigError("name the folder of the labs' results, or give --schema")
    board = read_board(arguments.folder)
    output: Path = arguments.output or arguments.folder
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "board.md", markdown(board))
    write_atomic(output / "board.html", page(board))
    counts = ", ".join(f"{len(rows)} of {name}" for name, rows in board.submissions.items())
    print(f"{output / 'board.html'} and board.md: {counts or 'no submissions'}")
    for line in board.refused:
        logger.error(line)
    return 1 if board.refused else 0
