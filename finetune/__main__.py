"""`python -m finetune tasks|check|report|predict`: tasks and their data, results in one page, maps of whole scenes."""

import argparse
import sys

from finetune import report
from finetune.data import check
from finetune.predict import command as predict
from shards.errors import ForgeError


def _list_tasks(arguments: argparse.Namespace) -> int:
    from finetune.tasks import get_task, task_names

    rows = [("task", "kind", "sensor", "outputs", "tiles", "description")]
    for name in task_names():
        task = get_task(name)
        tiles = "/".join(str(count) for count in task.tiles.values()) or "-"
        rows.append((name, task.kind, task.sensor, str(len(task.outputs)), tiles, task.description))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m finetune", description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("tasks", help="list the known tasks").set_defaults(run=_list_tasks)
    for name, module, told in (
        ("check", check, "verify a task's tiles, labels and lists"),
        ("report", report, "one page on any number of evaluations"),
        ("predict", predict, "a map of a whole scene"),
    ):
        subparser = commands.add_parser(name, help=told)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ForgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        print(f"error: {what}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
