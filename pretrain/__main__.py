"""`python -m pretrain status RUN...`: what runs are doing, of pretraining and of fine-tuning."""

import argparse
import sys
from pathlib import Path

from pretrain.resilience.status import run_state
from shards.cli import Parser

BAD = ("failed", "dead", "silent", "unknown")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser(prog="python -m pretrain", description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser(
        "status", help="what runs are doing; exit code 1 where one failed, or is dead or silent"
    )
    status.add_argument("run", type=Path, nargs="+", help="run folder")
    status.set_defaults(run_command=_status)
    arguments = parser.parse_args(argv)
    return int(arguments.run_command(arguments))


def _status(arguments: argparse.Namespace) -> int:
    """One line a run."""
    missing = [path for path in arguments.run if not path.is_dir()]
    if missing:
        print(f"error: {missing[0]}: no such folder: name the run.dir of a run", file=sys.stderr)
        return 2
    states = {path: run_state(path) for path in arguments.run}
    for path, state in states.items():
        print(f"{path}: {state}")
    return int(any(state.condition in BAD for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
