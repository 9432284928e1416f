"""Submit to Slurm: `python launch/slurm.py pretrain --config configs/... --nodes 2 --gpus-per-node 4 --time 2:00:00`.

`pretrain` submits one run, or with --sweep an array of runs; `finetune` an array of evaluations (configs x seeds) and
the report on them; `pipeline` chains sharding, merging, pretraining, export and these by dependencies. Scripts are
written below the run folder, from the templates in launch/slurm/; --dry-run prints them. Everything is validated
before anything is queued.
"""

import argparse
import re
import sys
from pathlib import Path

# Run by path, Python puts launch/ first on sys.path, where the name "pretrain" would be another file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.command import fail
from launch.jobs import Job, finetune_jobs, pipeline_jobs, pretrain_job
from shards.errors import ForgeError

FLAGS = ("--stage", "--no-requeue", "--dry-run")
"""Options that no value follows."""


def main(argv: list[str] | None = None) -> None:
    """Write and submit, or print."""
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    try:
        jobs = _jobs(arguments)
        after = None
        for job in jobs:
            if arguments.dry_run:
                print(f"# {job.script}\n{job.text()}")
                continue
            after = job.submit(after)
            print(f"{job.stage}: job {after}, script {job.script}, output {job.log}")
        if not arguments.dry_run:
            print("watch: squeue --me; stop and save: scancel --signal=USR1 JOB; cancel: scancel JOB")
    except ForgeError as error:
        fail(error)


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    if arguments.command == "pipeline":
        return pipeline_jobs(arguments)
    if arguments.command == "finetune":
        return finetune_jobs(arguments, Path(arguments.output).absolute())
    return [pretrain_job(arguments)]


# ---- the command line ----


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/slurm.py", description=str(__doc__).split("\n\n")[1], allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("pretrain", help="submit a run, or an array of runs", allow_abbrev=False)
    _add_run_options(run)
    run.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B", help="an array of runs; repeat it for all pairs"
    )
    evaluation = commands.add_parser("finetune", help="submit evaluations and their report", allow_abbrev=False)
    evaluation.add_argument("--config", dest="finetune", nargs="+", required=True, help="one YAML file a task")
    evaluation.add_argument("--output", default="runs/finetune", help="folder of the runs and the report (%(default)s)")
    _add_job_options(evaluation)
    _add_seeds(evaluation)
    pipeline = commands.add_parser(
        "pipeline", help="shard, merge, pretrain, export, fine-tune, report", allow_abbrev=False
    )
    _add_run_options(pipeline)
    pipeline.add_argument("--finetune", nargs="+", default=[], metavar="CONFIG", help="evaluate on these tasks, too")
    _add_seeds(pipeline)
    pipeline.add_argument("--tiles", required=True, help="what is sharded into the config's data.shards")
    pipeline.add_argument("--parts", type=_positive, default=4, help="array tasks that shard (default: 4)")
    pipeline.add_argument("--workers", type=_positive, default=8, help="CPUs of each (default: 8)")
    pipeline.set_defaults(sweep=[])
    return parser


def _add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=_positive, default=5, help="of each evaluation (default: %(default)s)")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="YAML file")
    _add_job_options(parser)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=_positive, default=1)
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--gpus-per-node", type=_positive, default=0, help="one task each")
    devices.add_argument("--tasks-per-node", type=_positive, default=1, help="on nodes without GPUs (default: 1)")
    parser.add_argument("--time", required=True, help="limit of each job, such as 2:00:00; runs continue after it")
    parser.add_argument("--cpus-per-task", type=_positive, help="default: run.threads + data.read_threads")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--name", help="of the job (default: from run.dir)")
    parser.add_argument(
        "--signal-seconds",
        type=_positive,
        help="time to save before the limit (default: a fifth of --time, at most 600)",
    )
    parser.add_argument("--stage", action="store_true", help="copy shards to $SLURM_TMPDIR on the nodes")
    parser.add_argument("--no-requeue", action="store_true", help="leave a stopped run stopped")
    parser.add_argument(
        "--retry-failures", type=int, default=0, metavar="N", help="requeue a failed run too, until the Nth start"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the scripts, write and submit nothing")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="replace single values of the config")


def _parse(argv: list[str]) -> argparse.Namespace:
    """Options and overrides in any order, which subcommands of argparse don't take by themselves."""
    words: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        is_value = before.startswith("--") and "=" not in before and before not in FLAGS
        is_override = re.fullmatch(r"[a-z_]+(\.[a-z_]+)*=.*", word, re.DOTALL) and not is_value
        (overrides if is_override else words).append(word)
    arguments = _parser().parse_args(words)
    arguments.overrides += overrides
    return arguments


def _positive(text: str) -> int:
    """A whole number above 0; argparse makes one line of the error."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


if __name__ == "__main__":
    main()
