"""Submit to Slurm: `python launch/slurm.py pretrain --config configs/... --nodes 2 --gpus-per-node 4 --time 2:00:00`.

`pretrain` submits one run, or with --sweep an array of runs; `pipeline` chains sharding, merging, pretraining and
export by dependencies. Scripts are written below the run folder, from the templates in launch/slurm/; --dry-run
prints them. Everything is validated before anything is queued.
"""

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

# Run by path, Python puts launch/ first on sys.path, where the name "pretrain" would be another file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.command import fail
from pretrain.config import PretrainConfig
from shards.atomic import write_atomic
from shards.config import load_config
from shards.errors import ConfigError, ForgeError

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).resolve().parent / "slurm"
STAGE = """\
# Shards are copied to each node once, during the first epoch.
export SLURM_TMPDIR="${SLURM_TMPDIR:-${TMPDIR:-/tmp}/spectralforge-$SLURM_JOB_ID}"
"""
CLEANUP = """\
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \\
    rm -rf "$SLURM_TMPDIR/shards" "${TMPDIR:-/tmp}/spectralforge-$SLURM_JOB_ID"
"""
CLIENT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
"""Variables that tell Slurm's commands which cluster is meant; all others are of the job they are found in."""
FLAGS = ("--stage", "--no-requeue", "--dry-run")
"""Options that no value follows."""


class SlurmError(ForgeError):
    """Slurm is missing or refuses a job."""

    exit_code = 1


class SbatchTemplate(Template):
    """A script with ``@name`` where values go: bash keeps its dollars."""

    delimiter = "@"


@dataclass(frozen=True)
class Job:
    """A script to submit.

    Attributes:
        stage: its template.
        script: where it is written.
        log: what its output goes to, with Slurm's %j and %a.
        values: for the template's names.
    """

    stage: str
    script: Path
    log: Path
    values: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The script."""
        template = SbatchTemplate((TEMPLATES / f"{self.stage}.sbatch").read_text())
        shared = {"root": quote(ROOT), "here": quote(Path.cwd()), "python": quote(sys.executable)}
        log = str(self.log.parent).replace("%", "%%") + f"/{self.log.name}"  # Slurm fills in %j and %a
        own = {"script": quote(self.script), "folder": quote(self.script.parent), "log": quote(log)}
        filled = template.substitute(shared | own | self.values)
        return re.sub(r"\n{3,}", "\n\n", filled)  # what an option leaves out leaves no gap

    def submit(self, after: str | None) -> str:
        """Hand it to Slurm, to begin when job ``after`` has succeeded. Returns its number."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.script, self.text())
        wait = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
        # submitted from within a job, a run is none of its tasks and has none of its limits
        outside = {name: text for name, text in os.environ.items() if not name.startswith("SLURM_") or name in CLIENT}
        command = ["sbatch", "--parsable", *wait, str(self.script)]
        try:
            done = subprocess.run(command, env=outside, capture_output=True, text=True)
        except FileNotFoundError:
            raise SlurmError("sbatch is missing: run this on a login node of the cluster, or use --dry-run") from None
        if done.returncode:
            raise SlurmError(f"{self.script}: {' '.join(done.stderr.split())}")
        return done.stdout.strip().split(";")[0]


def main(argv: list[str] | None = None) -> None:
    """Write and submit, or print."""
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    try:
        jobs = pipeline_jobs(arguments) if arguments.command == "pipeline" else [pretrain_job(arguments)]
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


# ---- jobs ----


def pretrain_job(arguments: argparse.Namespace) -> Job:
    """One run, or an array of runs, one for each combination of the swept values."""
    combinations = _combinations(arguments.sweep)
    configs = [_validated(arguments, combination) for combination in combinations]
    folder = Path(configs[0].run.dir).absolute()
    name = arguments.name or f"pretrain-{folder.name}"
    log = folder / "slurm" / ("%A_%a.out" if arguments.sweep else "%j.out")
    runs = [_run_folder(folder, combination) for combination in combinations]
    if twice := [run.name for number, run in enumerate(runs) if run in runs[:number]]:
        raise ConfigError(f"--sweep: two runs would share the folder {twice[0]}: give each key and value once")
    swept = [
        f"{number}) sweep=({shlex.join(combination)}) run={quote(run)} ;;"
        for number, (combination, run) in enumerate(zip(combinations, runs, strict=True))
    ]
    chosen = ['case "$SLURM_ARRAY_TASK_ID" in', *swept, "esac"] if arguments.sweep else [f"run={quote(folder)}"]
    words = [quote(override) for override in arguments.overrides]
    words += ['"${sweep[@]}"'] if arguments.sweep else []
    words += ['"run.dir=$run"']
    words += ['"data.stage=$SLURM_TMPDIR/shards"'] if arguments.stage else []
    directives = _directives(arguments)
    directives += [f"#SBATCH --array=0-{len(combinations) - 1}"] if arguments.sweep else []
    directives += [f"#SBATCH --gpus-per-node={arguments.gpus_per_node}"] if arguments.gpus_per_node else []
    cpus = arguments.cpus_per_task or configs[0].run.threads + configs[0].data.read_threads
    directives.append(f"#SBATCH --cpus-per-task={cpus}")
    values = {
        "name": quote(name),
        "nodes": str(arguments.nodes),
        "tasks": str(_tasks(arguments)),
        "time": arguments.time,
        "requeue": "no-requeue" if arguments.no_requeue else "requeue",
        "may_requeue": "0" if arguments.no_requeue else "1",
        "failures": str(arguments.retry_failures),
        "signal_seconds": str(_signal_seconds(arguments)),
        "directives": "\n".join(directives),
        "run": "\n".join(chosen),
        "stage": STAGE if arguments.stage else "",
        "cleanup": CLEANUP if arguments.stage else "",
        "config": quote(Path(arguments.config).absolute()),
        "overrides": " \\\n    ".join(words),
    }
    return Job("pretrain", folder / "slurm" / "pretrain.sbatch", log, values)


def pipeline_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Shard -> merge and statistics -> pretrain -> export, each after the one before; all of them can be repeated."""
    config = _validated(arguments, [])
    if "://" in config.data.shards:
        raise ConfigError(f"key 'data.shards': {config.data.shards}: a pipeline writes shards into a folder; name one")
    folder, shards = Path(config.run.dir).absolute(), Path(config.data.shards).absolute()
    if not Path(arguments.tiles).exists():
        raise ConfigError(f"--tiles {arguments.tiles}: no such folder")
    shared = {
        "directives": "\n".join(_directives(arguments)),
        "time": arguments.time,
        "tiles": quote(Path(arguments.tiles).absolute()),
        "shards": quote(shards),
        "parts": str(arguments.parts),
        "workers": str(arguments.workers),
        "run": quote(folder),
    }

    def job(stage: str, log: str = "%j.out") -> Job:
        values = shared | {"name": quote(f"{stage}-{folder.name}")}
        return Job(stage, folder / "slurm" / f"{stage}.sbatch", folder / "slurm" / f"{stage}-{log}", values)

    return [job("shard", "%A_%a.out"), job("merge"), pretrain_job(arguments), job("export")]


def _validated(arguments: argparse.Namespace, swept: list[str]) -> PretrainConfig:
    """The config of a run as it will be, checked for the number of processes that it will have."""
    config = load_config(arguments.config, [*arguments.overrides, *swept], PretrainConfig)
    try:
        config.accumulation(arguments.nodes * _tasks(arguments))
    except ValueError as error:
        raise ConfigError(f"{arguments.config}: {error}") from None
    return config


def _combinations(sweeps: list[str]) -> list[list[str]]:
    """All combinations of the values of ``key=a,b`` as lists of overrides; one empty list without any."""
    choices = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        if not equals or not values:
            raise ConfigError(f"--sweep {sweep}: write key=value,value such as optim.lr=1e-3,3e-4")
        if key == "run.dir":
            raise ConfigError("--sweep run.dir: each combination gets a folder of its own below run.dir")
        between = r",(?![^\[{]*[\]}])"  # commas, but those in a list or mapping
        choices.append([f"{key}={value}" for value in re.split(between, values)])
    return [list(combination) for combination in itertools.product(*choices)]


def _run_folder(base: Path, combination: list[str]) -> Path:
    return base / re.sub(r"[^\w.=+-]+", "_", ",".join(combination)) if combination else base


def _tasks(arguments: argparse.Namespace) -> int:
    return arguments.gpus_per_node or arguments.tasks_per_node


def _signal_seconds(arguments: argparse.Namespace) -> int:
    """How long before the limit the tasks are told; Slurm may tell them a minute earlier."""
    limit = limit_seconds(arguments.time)
    seconds = min(600, limit // 5) if arguments.signal_seconds is None else arguments.signal_seconds
    if seconds + 60 >= limit:
        raise ConfigError(
            f"--signal-seconds {seconds}: nothing is left of --time {arguments.time} when Slurm signals so early "
            "(give or take a minute): raise --time"
        )
    return seconds


def limit_seconds(time: str) -> int:
    """Seconds of a time limit as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        raise ConfigError(f"--time {time}: write minutes, minutes:seconds, hours:minutes:seconds or days-hours")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    first, second, third = parts
    if days is not None or third is not None:
        hours, minutes, seconds = first, second, third
    else:
        hours, minutes, seconds = 0, first, second
    return (((days or 0) * 24 + (hours or 0)) * 60 + (minutes or 0)) * 60 + (seconds or 0)


def _directives(arguments: argparse.Namespace) -> list[str]:
    """Lines for where and on whose account."""
    wanted = {"partition": arguments.partition, "account": arguments.account, "qos": arguments.qos}
    return [f"#SBATCH --{name}={quote(value)}" for name, value in wanted.items() if value]


def quote(value: object) -> str:
    """One word of bash."""
    return shlex.quote(str(value))


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
    pipeline = commands.add_parser("pipeline", help="shard, merge, pretrain, export", allow_abbrev=False)
    _add_run_options(pipeline)
    pipeline.add_argument("--tiles", required=True, help="what is sharded into the config's data.shards")
    pipeline.add_argument("--parts", type=_positive, default=4, help="array tasks that shard (default: 4)")
    pipeline.add_argument("--workers", type=_positive, default=8, help="CPUs of each (default: 8)")
    pipeline.set_defaults(sweep=[])
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="YAML file")
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
