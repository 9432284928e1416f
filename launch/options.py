"""The command line of launch/slurm.py."""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from launch.launchers import LAUNCHERS
from shards.cli import Parser, not_negative, positive

FLAGS = ("--stage", "--follow", "--no-requeue", "--dry-run", "--local", "--quiet", "--verbose")
"""Options without a value."""


class Gpus(NamedTuple):
    """GPUs of a node; its string form is sbatch's syntax."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}" if self.kind else str(self.number)


def parse(argv: list[str], description: str) -> argparse.Namespace:
    """Parse options and overrides in any order, which argparse does not support in subcommands."""
    words: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        is_value = before.startswith("--") and "=" not in before and before not in FLAGS
        if before == "--sbatch":  # its value starts with dashes
            words[-1] += f"={word}"
        elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*=.*", word, re.DOTALL) and not is_value:
            overrides.append(word)
        else:
            words.append(word)
    parser = build_parser(description)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(
            f"unrecognized arguments: {' '.join(unknown)} (options of sbatch go into --sbatch '--OPTION=VALUE')"
        )
    for name, value in vars(arguments).items():
        if isinstance(value, str) and not value.isprintable():
            parser.error(f"argument --{name.replace('_', '-')}: {value!r}: write one line of text")
    if arguments.command in ("status", "logs"):
        return arguments
    arguments.overrides += overrides
    if not arguments.time and not getattr(arguments, "local", False):
        parser.error("the following arguments are required: --time (of each job, such as 2:00:00)")
    if arguments.command == "finetune":
        _resolve_output(parser, arguments)
    return arguments


def _resolve_output(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Interpret ``run.dir=DIR`` as ``--output DIR``: each evaluation has its own run.dir below it."""
    folders = [word.partition("=")[2] for word in arguments.overrides if word.startswith("run.dir=")]
    if folders and arguments.output:
        parser.error("--output and run.dir= both name the folder of the runs; remove one of them")
    folder = arguments.output or (folders[-1] if folders else None)
    arguments.output = Path(folder).absolute() if folder else None
    arguments.overrides = [word for word in arguments.overrides if not word.startswith("run.dir=")]


def build_parser(description: str) -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="python launch/slurm.py", description=description, plugins=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, usage: str, summary: str) -> argparse.ArgumentParser:
        usage = f"%(prog)s {usage} --time LIMIT [option ...] [key.sub=value ...]  (see --help)"
        return commands.add_parser(name, usage=usage, help=summary)

    run = command("pretrain", "--config FILE", "submit a run, or an array of runs")
    run.add_argument("--config", required=True, help="YAML file")
    _add_sweep(run)
    _add_restarts(run)
    _add_job_options(run)
    evaluation = command("finetune", "--config FILE ...", "submit evaluations and their report")
    evaluation.add_argument("--config", dest="finetune", nargs="+", required=True, help="one YAML file per task")
    evaluation.add_argument(
        "--output", help="folder of the runs, OUTPUT/CONFIG/seed-N, and the report (default: each config's run.dir)"
    )
    _add_seeds(evaluation)
    _add_sweep(evaluation)
    evaluation.set_defaults(spares=0, min_nodes=None)
    _add_job_options(evaluation)
    pipeline = command("pipeline", "--config FILE --tiles FOLDER", "shard, merge, pretrain, export, fine-tune, report")
    pipeline.add_argument("--config", required=True, help="YAML file")
    pipeline.add_argument("--finetune", nargs="+", default=[], metavar="CONFIG", help="also evaluate on these tasks")
    _add_seeds(pipeline)
    pipeline.add_argument(
        "--tiles", required=True, help="source of the shards that are written to the config's data.shards"
    )
    pipeline.add_argument("--parts", type=positive, default=4, help="array tasks that shard (default: 4)")
    pipeline.add_argument("--workers", type=positive, default=8, help="CPUs of each (default: 8)")
    pipeline.set_defaults(sweep=[], spares=0, min_nodes=None)
    _add_job_options(pipeline)
    status = commands.add_parser("status", help="where a run is, how fast, its restarts and its last save")
    status.add_argument("run", type=Path, metavar="RUN", help="run folder")
    logs = commands.add_parser("logs", help="the output of a run's newest job")
    logs.add_argument("run", type=Path, metavar="RUN", help="run folder")
    logs.add_argument("--lines", type=positive, default=100, metavar="N", help="of its end (default: 100)")
    logs.add_argument("--follow", action="store_true", help="go on printing what is added, until Ctrl-C")
    return parser


def _add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=positive, help="0 to N-1 of each evaluation (default: the config's seeds)")


def _add_restarts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spares",
        type=not_negative,
        default=0,
        metavar="N",
        help="also allocate N nodes, and restart on good ones within the job when a rank or a node fails",
    )
    parser.add_argument(
        "--min-nodes",
        type=positive,
        metavar="N",
        help="restart on as few nodes within the job, at the same global batch (default: --nodes)",
    )


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B", help="an array of runs; repeat it for all pairs"
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="run here, one after another, without Slurm and its options, and print a table at the end",
    )


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--time", help="limit of each job, such as 2:00:00; runs continue after it")
    parser.add_argument("--nodes", type=positive, default=1)
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--gpus-per-node", type=_gpus, metavar="[TYPE:]N", help="one process each")
    devices.add_argument("--tasks-per-node", type=positive, default=1, help="on nodes without GPUs (default: 1)")
    parser.add_argument("--cpus-per-task", type=positive, help="default: run.threads + data.read_threads")
    parser.add_argument("--mem", help="of each node, such as 64G")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--constraint", help="features that nodes must have")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="LINE", help="another #SBATCH line; repeat it for more"
    )
    parser.add_argument("--setup", metavar="FILE", help="shell file to source in the job: modules, conda, a container")
    parser.add_argument("--name", help="of the job (default: from run.dir)")
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, default="srun", help="program that starts the ranks (default: srun)"
    )
    parser.add_argument(
        "--max-restarts", type=not_negative, default=0, metavar="N", help="of torchrun within a job (default: 0)"
    )
    parser.add_argument(
        "--signal-seconds",
        type=positive,
        help="time to save before the limit (default: a fifth of --time, at most 600)",
    )
    parser.add_argument("--stage", action="store_true", help="copy shards to $SLURM_TMPDIR on the nodes")
    parser.add_argument("--no-requeue", action="store_true", help="leave a stopped run stopped")
    parser.add_argument(
        "--retry-failures",
        type=not_negative,
        default=0,
        metavar="N",
        help="requeue a failed run too, until the Nth start",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the scripts, write and submit nothing")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="replace single values of the config")


def _gpus(text: str) -> Gpus:
    kind, _, count = text.rpartition(":")
    if not re.fullmatch(r"[\w.-]*", kind) or not count.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: write a number, or TYPE:NUMBER such as a100:4")
    return Gpus(kind, positive(count))
