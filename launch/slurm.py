"""Submit to Slurm: `python launch/slurm.py pretrain --config configs/... --nodes 2 --gpus-per-node 4 --time 2:00:00`.

`pretrain` submits one run, or with --sweep an array of runs; `finetune` submits an array of evaluations (configs x
swept values x seeds) and their report; `pipeline` chains sharding, merging, pretraining, export and evaluations by
dependencies. Scripts are written below the run folder, from the templates in launch/templates/; --dry-run prints them.
Everything is validated before anything is queued. --local runs a sweep or evaluations here, one by one, without Slurm.
`status RUN` and `logs RUN` show how a run is doing.
"""

import argparse
import shlex
import sys
from pathlib import Path

# Run by path, Python puts launch/ first on sys.path, where the name "pretrain" would be another file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch import local
from launch.jobs import Job, SlurmError, finetune_jobs, pipeline_jobs, pretrain_job, run_slurm
from launch.options import parse
from launch.overview import show_logs, show_status
from launch.preflight import check_free, check_inputs, check_queue, check_slurm
from launch.sweeps import Evaluations, Run, evaluations, pretrain_runs
from shards.cli import apply_verbosity, exit_code
from shards.console import get_logger
from shards.errors import ForgeError

logger = get_logger("launch.slurm")


def main(argv: list[str] | None = None) -> None:
    """Write and submit the scripts, run them locally, or print them; end the process on failure."""
    arguments = parse(sys.argv[1:] if argv is None else argv, str(__doc__).split("\n\n")[1])
    apply_verbosity(arguments)
    if code := exit_code(lambda: _run(arguments), kept="what is queued stays"):
        sys.exit(code)


def _run(arguments: argparse.Namespace) -> int:
    """Execute the command that the arguments name and return the exit code."""
    if arguments.command == "status":
        return show_status(arguments.run)
    if arguments.command == "logs":
        return show_logs(arguments.run, arguments.lines, arguments.follow)
    if getattr(arguments, "local", False):
        return _run_locally(arguments)
    jobs, runs = _jobs(arguments), _runs(arguments)
    if arguments.dry_run:
        _warn(arguments, runs)
        for job in jobs:
            print(f"# {job.script}\n{job.text()}")
        return 0
    check_slurm()
    check_inputs(arguments, runs)
    check_queue(jobs, runs)
    check_free(runs)
    _submit(jobs)
    return 0


def _submit(jobs: list[Job]) -> None:
    """Submit the jobs, each to start after the previous one; either all of them or none."""
    numbers: list[str] = []
    for job in jobs:
        try:
            numbers.append(job.submit(numbers[-1] if numbers else None))
        except ForgeError as error:
            if not numbers:
                raise
            run_slurm("scancel", *numbers)
            raise SlurmError(f"{error}; canceled the jobs queued before it: {', '.join(numbers)}") from None
        print(f"{job.stage}: job {numbers[-1]}, script {job.script}, output {job.log}")
    print("watch: squeue --me; stop and save: scancel --signal=USR1 JOB; cancel: scancel JOB")


def _run_locally(arguments: argparse.Namespace) -> int:
    """Run all runs, or print their commands, and return the exit code."""
    local.check_local(arguments)
    found = _evaluations(arguments) if arguments.command == "finetune" else None
    runs = found.runs if found else pretrain_runs(arguments)
    report = None
    if found:
        report = [sys.executable, "-m", "finetune", "report", *map(str, found.reported)]
        report += ["--output", str(found.folder / "report")]
    if arguments.dry_run:
        _warn(arguments, runs)
        for command in [*local.commands(arguments, runs), *([report] if report else [])]:
            print(shlex.join(command))
        return 0
    check_inputs(arguments, runs)
    check_free(runs)
    return local.run_all(arguments, runs, report)


def _warn(arguments: argparse.Namespace, runs: list[Run]) -> None:
    """Warn about missing inputs: scripts may be printed on a machine that does not have them."""
    try:
        check_inputs(arguments, runs)
    except ForgeError as error:
        logger.warning(str(error))


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    if arguments.command == "pipeline":
        return pipeline_jobs(arguments)
    if arguments.command == "finetune":
        return finetune_jobs(arguments, arguments.output)
    return [pretrain_job(arguments)]


def _runs(arguments: argparse.Namespace) -> list[Run]:
    """Return all runs of a submission."""
    if arguments.command == "finetune":
        return _evaluations(arguments).runs
    runs = pretrain_runs(arguments)
    if arguments.command == "pipeline" and arguments.finetune:
        folder = runs[0].folder
        runs += evaluations(arguments, folder / "finetune", folder / "export" / "encoder.safetensors").runs
    return runs


def _evaluations(arguments: argparse.Namespace) -> Evaluations:
    return evaluations(arguments, arguments.output)


if __name__ == "__main__":
    main()
