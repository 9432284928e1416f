"""`python -m finetune report RUNS... [--output DIR]`: results of any number of runs as one table and one page."""

import argparse
from pathlib import Path

from shards.atomic import write_atomic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    parser.add_argument("runs", nargs="+", type=Path, help="folders of evaluations, at any depth")
    parser.add_argument("--output", type=Path, help="folder of report.html, .md and .csv (default: the first of RUNS)")


def run(arguments: argparse.Namespace) -> int:
    """Write the three files and print the summary; returns the exit code.

    Raises:
        ConfigError: no results, damaged ones, or runs that don't go together.
    """
    from finetune.report.page import page
    from finetune.report.rows import collect, find_runs
    from finetune.report.tables import comma_separated, markdown

    reports = collect(find_runs(arguments.runs))
    output: Path = arguments.output or arguments.runs[0]
    output.mkdir(parents=True, exist_ok=True)
    text = markdown(reports)
    write_atomic(output / "report.csv", comma_separated(reports))
    write_atomic(output / "report.md", text)
    write_atomic(output / "report.html", page(reports))
    print(text.split("\n## ")[0])
    print(f"{output / 'report.html'}, report.md and report.csv")
    return 0
