"""Count training steps as a GPU would run them, without one, and print a line of JSON for each.

    python -m tools.fake_cuda                                   every case of the budgets
    python -m tools.fake_cuda mae_stage3 moco                   some of them
    python -m tools.fake_cuda --config mae/spec_vit_h engine.zero_stage=2 train.micro_batch=64
    python -m tools.fake_cuda --update                          count and rewrite the budgets

Each kernel's time is the longer of its FLOPs over 72 % of the GPU's peak and its bytes over 90 % of its bandwidth, and
at least 2 us. The step's own time is the sum: kernels run one after another. Host time is not known.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from launch.planner.machines import MACHINES
from shards.cli import Parser, positive, run_command
from shards.errors import ConfigError
from tools.fake_cuda import shim

if TYPE_CHECKING:
    from tools.fake_cuda.cases import Case


def main(argv: list[str] | None = None) -> int:
    """Count, print and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        prog="python -m tools.fake_cuda", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CASE|key=value", help="cases, or with --config its overrides")
    parser.add_argument("--config", metavar="NAME", help="a config of configs/pretrain instead, such as mae/spec_vit_h")
    parser.add_argument("--world", type=positive, default=8, help="processes of --config (default: %(default)s)")
    parser.add_argument("--gpu", choices=sorted(MACHINES), default="h100", help="default: %(default)s")
    parser.add_argument("--update", action="store_true", help="write the counts into the budgets")
    parser.set_defaults(run=_run)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    shim.load()
    from tools.fake_cuda import runtime

    runtime.install()
    from tools.fake_cuda.budgets import read_table, write_table
    from tools.fake_cuda.report import budget, to_dict
    from tools.fake_cuda.step import count_step

    table = read_table()
    machine = MACHINES[arguments.gpu]
    for case in _cases(arguments):
        counted = to_dict(count_step(case.load(), case.world, machine), machine, case.world)
        print(json.dumps({"case": case.name} | counted), flush=True)
        if arguments.update:
            table[case.name] |= budget(counted)
            write_table(table)


def _cases(arguments: argparse.Namespace) -> "list[Case]":
    from tools.fake_cuda.budgets import cases, read_table
    from tools.fake_cuda.cases import Case

    if arguments.config is not None:
        if arguments.update:
            raise ConfigError("--update writes the cases of the budgets: it doesn't go with --config")
        return [
            Case(
                " ".join([arguments.config, *arguments.names]),
                arguments.config,
                tuple(arguments.names),
                arguments.world,
            )
        ]
    known = {case.name: case for case in cases(read_table())}
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such case; known: {', '.join(known)}")
    return [known[name] for name in arguments.names or known]


if __name__ == "__main__":
    sys.exit(main())
