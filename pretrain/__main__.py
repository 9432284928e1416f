"""`python -m pretrain status RUN...`: what runs are doing, of pretraining and of fine-tuning."""

import argparse
import sys
from pathlib import Path

from pretrain.resilience.status import run_state
from shards.cli import Parser, run_command
from shards.errors import ConfigError

BAD = ("failed", "dead", "silent", "unknown")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="python -m pretrain", description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="what runs are doing; exit code 1 if one failed, or is dead or silent")
    status.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="run folder")
    status.set_defaults(run=_status)
    return parser


def _status(arguments: argparse.Namespace) -> int:
    """Print one line for each run."""
    missing = [path for path in arguments.folders if not path.is_dir()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such folder: name the run.dir of a run")
    states = {path: run_state(path) for path in arguments.folders}
    for path, state in states.items():
        print(f"{path}: {state}")
    return int(any(state.condition in BAD for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
