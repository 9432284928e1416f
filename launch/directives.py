"""The #SBATCH lines of a job: partition, time limit, account and other resources."""

import argparse
import re
import shlex

from shards.errors import ConfigError

OURS = {
    "job-name": "--name",
    "nodes": "--nodes",
    "ntasks": "--gpus-per-node or --tasks-per-node",
    "ntasks-per-node": "--gpus-per-node or --tasks-per-node",
    "gpus-per-node": "--gpus-per-node",
    "cpus-per-task": "--cpus-per-task",
    "mem": "--mem",
    "constraint": "--constraint",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "time": "--time",
    "signal": "--signal-seconds",
    "array": "--sweep, --seeds or --parts",
    "requeue": "--no-requeue",
    "no-requeue": "--no-requeue",
    "output": "run.dir: output goes to its folder slurm/",
    "open-mode": "run.dir: output is appended in its folder slurm/",
    "chdir": "cd: jobs run in the folder that they are submitted from",
}
"""Options of sbatch that scripts set themselves, and the option of this command that sets each."""
SHORT = dict(
    J="job-name", N="nodes", n="ntasks", c="cpus-per-task", C="constraint", p="partition", A="account", q="qos",
    t="time", a="array", o="output", D="chdir",
)  # fmt: skip
SHARED = ("partition", "account", "qos", "constraint", "mem")
"""Options passed on to sbatch for every job of a submission."""
VARIABLES = {"time": "TIMELIMIT", "array": "ARRAY_INX", "mem": "MEM_PER_NODE"}
"""Environment variables of sbatch, without SBATCH_, whose names differ from their options'."""


def directives(arguments: argparse.Namespace) -> list[str]:
    """Return the lines shared by all jobs of a submission.

    Raises:
        ConfigError: an extra line of --sbatch is not an option, or is set elsewhere.
    """
    options = [(name, getattr(arguments, name)) for name in SHARED]
    lines = [f"#SBATCH --{name}={shlex.quote(value)}" for name, value in options if value]
    return lines + [f"#SBATCH {_extra(line)}" for line in arguments.sbatch]


def overridden(script: str) -> set[str]:
    """Return the environment variables that would override options of a script."""
    names = set(re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE))
    if {"requeue", "no-requeue"} & names:
        names |= {"requeue", "no-requeue"}
    return {f"SBATCH_{VARIABLES.get(name, name.upper().replace('-', '_'))}" for name in names}


def signal_seconds(arguments: argparse.Namespace) -> int:
    """Return the seconds between the signal to tasks and the limit; Slurm may signal up to a minute earlier."""
    limit = limit_seconds(arguments.time)
    seconds = min(600, limit // 5) if arguments.signal_seconds is None else arguments.signal_seconds
    if seconds + 60 >= limit:
        raise ConfigError(
            f"--signal-seconds {seconds}: leaves no time to run: Slurm signals up to a minute early, and --time is "
            f"{arguments.time}: raise --time"
        )
    return int(seconds)


def limit_seconds(time: str) -> int:
    """Parse a time limit in Slurm's formats (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) to seconds."""
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


def _extra(line: str) -> str:
    """Return an extra line without a leading #SBATCH."""
    text = re.sub(r"^#SBATCH\s", "", line.strip()).strip()
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--sbatch {line}: {error}: write one line as sbatch reads it") from None
    if not words or not words[0].startswith("-") or not text.isprintable():
        raise ConfigError(f"--sbatch {line}: write an option of sbatch such as --sbatch '--exclusive'")
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
        else:
            name = SHORT.get(word[1:2], "") if word.startswith("-") else ""
        if name in OURS:
            raise ConfigError(f"--sbatch {line}: the script already sets --{name}; use {OURS[name]}")
    return text
