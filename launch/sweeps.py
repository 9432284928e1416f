"""The runs of one submission: one per combination of swept values, and per config and seed for evaluations."""

import argparse
import hashlib
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from shards.config import load_config
from shards.errors import ConfigError

LONGEST_NAME = 200
"""Maximum length of a folder name in bytes; file systems allow 255."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        program: script in launch/ that runs it, ``pretrain`` or ``finetune``.
        file: its config file.
        overrides: overrides of this run only, applied after the submission's.
        folder: its absolute run.dir.
        config: config resolved from all of these.
    """

    program: str
    file: Path
    overrides: list[str]
    folder: Path
    config: PretrainConfig | FinetuneConfig


@dataclass(frozen=True)
class Evaluations:
    """Runs of launch/finetune.py, and the folders that their report covers.

    Attributes:
        folder: folder of the job scripts and the report.
        reported: folders in which the report looks for results.
    """

    runs: list[Run]
    folder: Path
    reported: list[Path]


def pretrain_runs(arguments: argparse.Namespace) -> list[Run]:
    """Return one run, or one per combination of the swept values, each in its own folder below run.dir.

    Raises:
        ConfigError: a config is invalid, or its global batch is not divisible among the processes.
    """
    runs = []
    for combination in combinations(arguments.sweep):
        config = load_config(arguments.config, [*arguments.overrides, *combination], PretrainConfig)
        try:
            config.accumulation(arguments.nodes * processes_per_node(arguments))
        except ValueError as error:
            raise ConfigError(f"{arguments.config}: {error}") from None
        folder = Path(config.run.dir).absolute() / combination_name(combination)
        runs.append(Run("pretrain", Path(arguments.config).absolute(), combination, folder, config))
    _refuse_shared(
        runs, lambda run: f"--sweep: two runs would share the folder {run.folder.name}: give each key and value once"
    )
    return runs


def node_counts(arguments: argparse.Namespace, runs: list[Run]) -> list[int]:
    """Return the numbers of nodes, the largest first, from --nodes down to --min-nodes that divide the global batch.

    Raises:
        ConfigError: --min-nodes is larger than --nodes, or --nodes alone divides it.
    """
    fewest = arguments.min_nodes or arguments.nodes
    if fewest > arguments.nodes:
        raise ConfigError(f"--min-nodes {fewest}: is more than --nodes {arguments.nodes}")
    per_node = processes_per_node(arguments)
    counts = [count for count in range(arguments.nodes, fewest - 1, -1) if _divides(runs, count * per_node)]
    if fewest < arguments.nodes and counts == [arguments.nodes]:
        raise ConfigError(
            f"--min-nodes {fewest}: train.global_batch is a multiple of train.micro_batch x processes on no number of "
            f"nodes from {fewest} to {arguments.nodes - 1}: change train.micro_batch, or leave --min-nodes out"
        )
    return counts


def _divides(runs: list[Run], processes: int) -> bool:
    """Return whether the global batches of pretraining runs can be divided among a number of processes."""
    try:
        for run in runs:
            if isinstance(run.config, PretrainConfig):
                run.config.accumulation(processes)
    except ValueError:
        return False
    return True


def evaluations(
    arguments: argparse.Namespace, output: Path | None = None, checkpoint: Path | None = None
) -> Evaluations:
    """Return one run for each config, combination of swept values and seed.

    Args:
        output: runs go to ``output/<config>/<combination>/seed-<n>``; None uses each config's run.dir as
            ``output/<config>``.
        checkpoint: checkpoint to evaluate in a pipeline, whose overrides belong to its pretraining; None if the config
            or an override names it.
    """
    overrides = arguments.overrides if checkpoint is None else []
    fixed = [] if checkpoint is None else [f"checkpoint={checkpoint}"]
    if arguments.seeds and any(override.startswith("seeds=") for override in overrides):
        raise ConfigError("--seeds: the seeds are also given as an override; remove one of them")
    runs, bases = [], []
    for file in arguments.finetune:
        for combination in combinations(arguments.sweep if checkpoint is None else []):
            words = [*fixed, *combination]
            config = load_config(file, [*overrides, *words], FinetuneConfig)
            base = output / Path(file).stem if output else Path(config.run.dir).absolute()
            bases.append(base)
            for seed in range(arguments.seeds) if arguments.seeds else config.seeds:
                seeded = [*words, f"seeds=[{seed}]"]
                folder = base / combination_name(combination) / f"seed-{seed}"
                runs.append(Run("finetune", Path(file).absolute(), seeded, folder, config))
    _refuse_shared(
        runs,
        lambda run: (
            f"{run.file}: two runs would share the folder {run.folder}: give each config its own name and run.dir, and "
            "each swept value and seed once"
        ),
    )
    folder = output or Path(os.path.commonpath(bases))
    return Evaluations(runs, folder, [folder] if output else list(dict.fromkeys(bases)))


def _refuse_shared(runs: list[Run], message: Callable[[Run], str]) -> None:
    """Raise ConfigError if two runs would write to the same folder."""
    seen: set[Path] = set()
    for run in runs:
        if run.folder in seen:
            raise ConfigError(message(run))
        seen.add(run.folder)


def combinations(sweeps: list[str]) -> list[list[str]]:
    """Return all combinations of the values of ``key=a,b`` as lists of overrides; one empty list without any."""
    choices = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        if not equals or not values:
            raise ConfigError(f"--sweep {sweep}: write key=value,value such as optim.lr=1e-3,3e-4")
        if key == "run.dir":
            raise ConfigError("--sweep run.dir: each combination gets its own folder below run.dir")
        if key == "seeds":
            raise ConfigError("--sweep seeds: each seed is already a separate run; write --seeds N, or seeds=[3,4]")
        choices.append([f"{key}={value}" for value in split_values(values)])
    return [list(combination) for combination in itertools.product(*choices)]


def split_values(text: str) -> list[str]:
    """Split at commas that are not inside quotes, a list or a mapping."""
    values, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        depth += (char in "[{") - (char in "]}") if not quote else 0
        if char == "," and not quote and depth <= 0:
            values.append("")
        else:
            values[-1] += char
    return values


def combination_name(combination: list[str]) -> str:
    """Return the folder name for swept values; empty if there are none."""
    name = re.sub(r"[^\w.=+-]+", "_", ",".join(combination))
    if len(name.encode()) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def processes_per_node(arguments: argparse.Namespace) -> int:
    """Return the number of GPUs per node, or --tasks-per-node."""
    return arguments.gpus_per_node.number if arguments.gpus_per_node else arguments.tasks_per_node
