"""Jobs for Slurm: readable sbatch scripts out of templates, checked before anything is queued."""

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

from finetune.config import FinetuneConfig
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
        template: where the stage has none of its own name.
    """

    stage: str
    script: Path
    log: Path
    values: dict[str, str] = field(default_factory=dict)
    template: str = ""

    def text(self) -> str:
        """The script."""
        template = SbatchTemplate((TEMPLATES / f"{self.template or self.stage}.sbatch").read_text())
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


def pretrain_job(arguments: argparse.Namespace) -> Job:
    """One run, or an array of runs, one for each combination of the swept values."""
    combinations = _combinations(arguments.sweep)
    configs = [_validated(arguments, combination) for combination in combinations]
    folder = Path(configs[0].run.dir).absolute()
    runs = [_run_folder(folder, combination) for combination in combinations]
    if twice := [run.name for number, run in enumerate(runs) if run in runs[:number]]:
        raise ConfigError(f"--sweep: two runs would share the folder {twice[0]}: give each key and value once")
    config = Path(arguments.config).absolute()
    elements = [Element(config, combination, run) for combination, run in zip(combinations, runs, strict=True)]
    cpus = arguments.cpus_per_task or configs[0].run.threads + configs[0].data.read_threads
    words = ['"data.stage=$SLURM_TMPDIR/shards"'] if arguments.stage else []
    return _run_job("pretrain", arguments, folder, elements, words, cpus, is_array=bool(arguments.sweep))


def finetune_jobs(arguments: argparse.Namespace, folder: Path, checkpoint: Path | None = None) -> list[Job]:
    """An array of evaluations, one for each config and seed, and the report on all of them.

    Args:
        folder: runs go to ``folder/<config>/seed-<n>``, the report to ``folder/report``.
        checkpoint: that is evaluated, where it isn't among the overrides.
    """
    own = [] if checkpoint is None else [f"checkpoint={checkpoint}"]
    elements, cpus = [], 1
    for path in arguments.finetune:
        for seed in range(arguments.seeds):
            overrides = [*own, f"seeds=[{seed}]"]
            words = overrides if checkpoint is not None else [*arguments.overrides, *overrides]
            config = load_config(path, words, FinetuneConfig)
            cpus = max(cpus, arguments.cpus_per_task or config.run.threads + config.data.read_threads)
            run = folder / Path(path).stem / f"seed-{seed}"
            elements.append(Element(Path(path).absolute(), overrides, run))
    one = argparse.Namespace(**vars(arguments) | {"nodes": 1, "gpus_per_node": min(arguments.gpus_per_node, 1)})
    one.tasks_per_node, one.stage = 1, False
    if checkpoint is not None:
        one.overrides = []  # they are the pretraining's
    job = _run_job("finetune", one, folder, elements, [], cpus, is_array=True)
    values = {"name": quote(f"report-{folder.name}"), "directives": "\n".join(_directives(arguments))}
    values |= {"time": arguments.time, "runs": quote(folder), "report": quote(folder / "report")}
    return [job, Job("report", folder / "slurm" / "report.sbatch", folder / "slurm" / "report-%j.out", values)]


@dataclass(frozen=True)
class Element:
    """A run of an array: its config, overrides and folder."""

    config: Path
    overrides: list[str]
    run: Path


def _run_job(
    program: str,
    arguments: argparse.Namespace,
    folder: Path,
    elements: list[Element],
    words: list[str],
    cpus: int,
    is_array: bool,
) -> Job:
    """A job that saves before its time is up and is requeued: one run, or an array of them.

    Args:
        program: script in launch/.
        folder: scripts and output go below it.
        words: further arguments, quoted for bash.
    """
    swept = [
        f"{number}) config={quote(one.config)} sweep=({shlex.join(one.overrides)}) run={quote(one.run)} ;;"
        for number, one in enumerate(elements)
    ]
    first = elements[0]
    chosen = ['case "$SLURM_ARRAY_TASK_ID" in', *swept, "esac"]
    if not is_array:
        chosen = [f"config={quote(first.config)}", f"run={quote(first.run)}"]
    overrides = [quote(override) for override in arguments.overrides]
    overrides += ['"${sweep[@]}"'] if is_array else []
    directives = _directives(arguments)
    directives += [f"#SBATCH --array=0-{len(elements) - 1}"] if is_array else []
    directives += [f"#SBATCH --gpus-per-node={arguments.gpus_per_node}"] if arguments.gpus_per_node else []
    directives.append(f"#SBATCH --cpus-per-task={cpus}")
    values = {
        "program": program,
        "name": quote(arguments.name or f"{program}-{folder.name}"),
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
        "overrides": " \\\n    ".join([*overrides, '"run.dir=$run"', *words]),
    }
    log = folder / "slurm" / ("%A_%a.out" if is_array else "%j.out")
    return Job(program, folder / "slurm" / f"{program}.sbatch", log, values, template="run")


def pipeline_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Shard -> merge and statistics -> pretrain -> export -> fine-tune -> report, each after the one before.

    All of them can be repeated. Fine-tuning and report are there where ``--finetune`` names configs.
    """
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

    jobs = [job("shard", "%A_%a.out"), job("merge"), pretrain_job(arguments), job("export")]
    if arguments.finetune:
        jobs += finetune_jobs(arguments, folder / "finetune", folder / "export" / "encoder.safetensors")
    return jobs


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
