"""Slurm jobs: readable sbatch scripts from templates, checked before anything is queued."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from launch.directives import directives, overridden, signal_seconds
from launch.launchers import LAUNCHERS, SUPERVISED, check_launcher
from launch.sweeps import Run, evaluations, node_counts, pretrain_runs, processes_per_node
from shards.errors import ConfigError, ForgeError
from shards.files.atomic import write_atomic

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).resolve().parent / "templates"
STAGE = """\
# Shards are copied to each node once, during the first epoch.
export SLURM_TMPDIR="${SLURM_TMPDIR:-${TMPDIR:-/tmp}/spectralforge-$SLURM_JOB_ID}"
"""
CLEANUP = """\
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \\
    rm -rf "$SLURM_TMPDIR/shards" "${TMPDIR:-/tmp}/spectralforge-$SLURM_JOB_ID"
"""
CLEANUP_NODES = """\
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do # one by one: some may be down
    timeout 60 srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" \\
        rm -rf "$SLURM_TMPDIR/shards" "${TMPDIR:-/tmp}/spectralforge-$SLURM_JOB_ID" &
done
wait
"""
SETUP = """\
# The first command of --setup that fails ends the job. The file may set python=(apptainer exec IMAGE python).
setup=@setup_file
trap 'blamed=$BASH_COMMAND; exit 1' ERR
trap 'echo "error: --setup $setup: ended the job with code $?${blamed:+ at: $blamed}" >&2; trap - EXIT; exit 1' EXIT
. "$setup"
trap - ERR EXIT
"""
CLIENT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
"""Variables that select the cluster of Slurm's commands; other variables describe the job of the current process."""


class SlurmError(ForgeError):
    """Slurm is missing or refuses a job."""

    exit_code = 1


class SbatchTemplate(Template):
    """A script template with ``@name`` placeholders, so that bash's ``$`` needs no escaping."""

    delimiter = "@"


@dataclass(frozen=True)
class Job:
    """A script to submit.

    Attributes:
        stage: name of its template.
        script: path of the script.
        log: path of its output, with Slurm's %j and %a.
        values: values of the template's placeholders.
        template: template to use if the stage has none of its own name.
        elements: number of runs in an array; 0 for a job that is not an array.
    """

    stage: str
    script: Path
    log: Path
    values: dict[str, str] = field(default_factory=dict)
    template: str = ""
    elements: int = 0

    def text(self) -> str:
        """Return the script."""
        text = (TEMPLATES / f"{self.template or self.stage}.sbatch").read_text()
        shared = {"root": quote(ROOT), "here": quote(Path.cwd()), "python": quote(sys.executable)}
        log = str(self.log.parent).replace("%", "%%") + f"/{self.log.name}"  # Slurm fills in %j and %a
        of_script = {"script": quote(self.script), "folder": quote(self.script.parent), "log": quote(log)}
        text = text.replace("@launch\n", self.values.get("launch", ""))  # before its placeholders are filled in
        text = text.replace("[@]", "[@@]")  # bash syntax for all elements of an array
        filled = SbatchTemplate(text).substitute(shared | of_script | self.values)
        return re.sub(r"\n{3,}", "\n\n", filled)  # omitted options leave no gap

    def submit(self, after: str | None) -> str:
        """Submit the job, to start after job ``after`` has succeeded, and return its job ID."""
        text = self.text()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.script, text)
        except OSError as error:
            raise ConfigError(f"key 'run.dir': {self.script}: can't be written: {error.strerror}") from None
        wait = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
        done = run_slurm("sbatch", "--parsable", *wait, str(self.script), without=overridden(text))
        if done.returncode:
            raise SlurmError(f"{self.script}: {one_line(done.stderr)}")
        return done.stdout.strip().split(";")[0]


def run_slurm(*command: str, without: Collection[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command as if outside any job.

    A run submitted from within a job is not one of its tasks and does not inherit its limits.

    Args:
        without: additional environment variables to hide from the command.

    Raises:
        SlurmError: the command can't be run.
    """
    outside = {name: text for name, text in os.environ.items() if not name.startswith("SLURM_") or name in CLIENT}
    environment = {name: text for name, text in outside.items() if name not in without}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise SlurmError(f"{command[0]}: can't be run: {error.strerror}") from None


def one_line(message: str) -> str:
    """Return the error message of a Slurm command as one line."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line.strip()) for line in message.splitlines()]
    return "; ".join(line for line in lines if line)


def pretrain_job(arguments: argparse.Namespace) -> Job:
    """Return the job of one run, or of an array of runs, one for each combination of the swept values."""
    runs = pretrain_runs(arguments)
    folder = Path(runs[0].config.run.dir).absolute()
    return _run_job(arguments, folder, runs, is_array=bool(arguments.sweep))


def finetune_jobs(arguments: argparse.Namespace, output: Path | None, checkpoint: Path | None = None) -> list[Job]:
    """Return the job array of evaluations, one for each config, combination and seed, and the job of their report.

    Args:
        output, checkpoint: see `evaluations`.
    """
    runs = evaluations(arguments, output, checkpoint)
    job = _run_job(arguments, runs.folder, runs.runs, is_array=True)
    values = _shared(arguments) | {"name": quote(f"report-{runs.folder.name}")}
    values |= {"runs": " ".join(map(quote, runs.reported)), "report": quote(runs.folder / "report")}
    slurm = runs.folder / "slurm"
    return [job, Job("report", slurm / "report.sbatch", slurm / "report-%j.out", values)]


def _shared(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the values shared by all templates."""
    setup = ""
    if arguments.setup:
        setup = SbatchTemplate(SETUP).substitute(setup_file=quote(Path(arguments.setup).absolute()))
    return {"directives": "\n".join(directives(arguments)), "time": arguments.time, "setup": setup}


def _run_job(arguments: argparse.Namespace, folder: Path, runs: list[Run], is_array: bool) -> Job:
    """Return a job that saves before its time limit and is requeued: one run, or an array of runs.

    Args:
        folder: parent folder of scripts and output.
    """
    check_launcher(arguments, str(ROOT), str(Path.cwd()))
    program, seconds = runs[0].program, signal_seconds(arguments)
    supervised = bool(arguments.spares or arguments.min_nodes)
    choices = [
        f"{number}) config={quote(run.file)} sweep=({shlex.join(run.overrides)}) run={quote(run.folder)} ;;"
        for number, run in enumerate(runs)
    ]
    chosen = ['case "$SLURM_ARRAY_TASK_ID" in', *choices, "esac"]
    if not is_array:
        chosen = [f"config={quote(runs[0].file)}", f"run={quote(runs[0].folder)}"]
    grace = min(run.config.watchdog.grace or seconds for run in runs)
    words = [quote(override) for override in arguments.overrides]
    words += ['"${sweep[@]}"'] if is_array else []
    if grace > seconds * 9 // 10:  # a hanging save is aborted and requeued before Slurm ends the job for good
        grace = seconds * 9 // 10
        words.append(f"watchdog.grace={grace}")
    words += ['"run.dir=$run"', *(['"data.stage=$SLURM_TMPDIR/shards"'] if arguments.stage else [])]
    values = _shared(arguments) | _resources(arguments, runs, is_array)
    values |= {
        "program": program,
        "name": quote(arguments.name or f"{program}-{folder.name}"),
        "requeue": "no-requeue" if arguments.no_requeue else "requeue",
        "may_requeue": "0" if arguments.no_requeue else "1",
        "failures": str(arguments.retry_failures),
        "signal_seconds": str(seconds),
        "run": "\n".join(chosen),
        "stage": STAGE if arguments.stage else "",
        "launch": SUPERVISED if supervised else LAUNCHERS[arguments.launcher].command,
        "counts": ",".join(map(str, node_counts(arguments, runs))) if supervised else "",
        "gpus": str(arguments.gpus_per_node.number if arguments.gpus_per_node else 0),
        "max_restarts": str(arguments.max_restarts),
        "shutdown_seconds": str(grace + 30),
        "cleanup": (CLEANUP_NODES if supervised else CLEANUP) if arguments.stage else "",
        "words": "\n    ".join(words),
    }
    log = folder / "slurm" / ("%A_%a.out" if is_array else "%j.out")
    elements = len(runs) if is_array else 0
    return Job(program, folder / "slurm" / f"{program}.sbatch", log, values, template="run", elements=elements)


def _resources(arguments: argparse.Namespace, runs: list[Run], is_array: bool) -> dict[str, str]:
    """Return the nodes, tasks, CPUs and GPUs of each run."""
    processes = processes_per_node(arguments)
    tasks = 1 if LAUNCHERS[arguments.launcher].one_task_per_node else processes
    cpus = arguments.cpus_per_task or max(run.config.run.threads + run.config.data.read_threads for run in runs)
    lines = directives(arguments)
    lines += [f"#SBATCH --array=0-{len(runs) - 1}"] if is_array else []
    lines += [f"#SBATCH --gpus-per-node={arguments.gpus_per_node}"] if arguments.gpus_per_node else []
    lines.append(f"#SBATCH --cpus-per-task={cpus * processes // tasks}")
    lines += ["#SBATCH --no-kill"] if arguments.spares or arguments.min_nodes else []  # when a node fails
    counts = {"nodes": arguments.nodes + arguments.spares, "tasks": tasks, "processes": processes}
    return {name: str(count) for name, count in counts.items()} | {"directives": "\n".join(lines)}


def pipeline_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Return jobs that run one after another: shard, merge and statistics, pretrain, export, fine-tune, report.

    Each job can be repeated. Fine-tuning and report are included if ``--finetune`` names configs.
    """
    (run,) = pretrain_runs(arguments)
    config, folder = run.config, run.folder
    shards = config.data.shards
    if shards is None:
        raise ConfigError("key 'data.sources': a pipeline packs one dataset: name the folder for it as data.shards")
    if "://" in shards:
        raise ConfigError(f"key 'data.shards': {shards}: a pipeline writes shards into a folder; name one")
    if not Path(arguments.tiles).exists():
        raise ConfigError(f"--tiles {arguments.tiles}: no such folder")
    shared = _shared(arguments) | {
        "tiles": quote(Path(arguments.tiles).absolute()),
        "shards": quote(Path(shards).absolute()),
        "parts": str(arguments.parts),
        "workers": str(arguments.workers),
        "run": quote(folder),
    }

    def job(stage: str, log: str = "%j.out", elements: int = 0) -> Job:
        values = shared | {"name": quote(f"{stage}-{folder.name}")}
        slurm = folder / "slurm"
        return Job(stage, slurm / f"{stage}.sbatch", slurm / f"{stage}-{log}", values, elements=elements)

    jobs = [job("shard", "%A_%a.out", arguments.parts), job("merge"), pretrain_job(arguments), job("export")]
    if arguments.finetune:
        small = {"nodes": 1, "tasks_per_node": 1, "stage": False, "overrides": []}
        evaluation = argparse.Namespace(**vars(arguments) | small)
        evaluation.gpus_per_node = arguments.gpus_per_node and arguments.gpus_per_node._replace(number=1)
        jobs += finetune_jobs(evaluation, folder / "finetune", folder / "export" / "encoder.safetensors")
    return jobs


def quote(value: object) -> str:
    """Quote a value as one word of bash."""
    return shlex.quote(str(value))
