"""`python -m finetune report RUNS... [--output DIR]`: results of several runs in one table and one page."""

import argparse
from pathlib import Path

from shards.console import get_logger
from shards.errors import ConfigError
from shards.files.atomic import write_atomic

logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("runs", nargs="+", type=Path, help="folders of evaluations, at any depth")
    parser.add_argument("--output", type=Path, help="folder of report.html, .md and .csv (default: the first of RUNS)")


def run(arguments: argparse.Namespace) -> int:
    """Write the three files, print the summary and return the exit code: 1 if some results can't be read.

    Raises:
        ConfigError: there are no readable results.
    """
    from finetune.report.collect import collect, find_runs, read_runs
    from finetune.report.markdown import markdown
    from finetune.report.page import page
    from finetune.report.tables import comma_separated
    from finetune.report.unfinished import unfinished

    given: list[Path] = arguments.runs
    runs, problems = read_runs(find_runs(given))
    waiting = unfinished(given)
    if not runs:
        nothing = f"{given[0]}: no results.json at or below this folder: evaluations write it when they are complete"
        raise ConfigError((problems or waiting or [nothing])[0])
    reports = collect(runs)
    output: Path = arguments.output or given[0]
    output.mkdir(parents=True, exist_ok=True)
    more = [f"{problem}." for problem in [*problems, *waiting]]
    text = markdown(reports, more)
    write_atomic(output / "report.csv", comma_separated(reports))
    write_atomic(output / "report.md", text)
    write_atomic(output / "report.html", page(reports, more))
    print(text.split("\n## ")[0])
    print(f"{output / 'report.html'}, report.md and report.csv")
    for problem in problems:
        logger.error(problem)
    return 1 if problems else 0
