"""`python -m finetune tasks|fetch-notes|cut|check|report|compare|board|predict`: tasks, data, results, maps."""

import argparse
import sys

from finetune import report
from finetune.data import check, scenes
from finetune.predict import command as predict
from finetune.report import board, pair
from finetune.tasks import notes
from shards.cli import Parser, run_command


def _list_tasks(arguments: argparse.Namespace) -> int:
    from finetune.tasks import get_task, task_names

    rows = [("task", "kind", "sensor", "outputs", "tiles", "description")]
    for name in task_names():
        task = get_task(name)
        tiles = "/".join(str(count) for count in task.tiles.values()) or "-"
        rows.append((name, task.kind.name, task.sensor, str(len(task.outputs)), tiles, task.description))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    return run_command(build_parser(), argv, kept="nothing was written")


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="python -m finetune", description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("tasks", help="list the known tasks").set_defaults(run=_list_tasks)
    for name, module, summary in (
        ("fetch-notes", notes, "where a task's data comes from, its license and its known defects"),
        ("cut", scenes, "cut a classic scene into the tiles of its task"),
        ("check", check, "verify a task's tiles, labels and lists"),
        ("report", report, "one page on any number of evaluations"),
        ("compare", pair, "two rows of a report: difference, test, effect size, classes"),
        ("board", board, "a leaderboard of many labs' results"),
        ("predict", predict, "a map of a whole scene"),
    ):
        subparser = commands.add_parser(name, help=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
