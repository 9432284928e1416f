"""What the studies share: commands that they run one after another, a small pretraining, and cells of their tables."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from shards.config import REPOSITORY
from shards.errors import ForgeError

PRETRAIN = (
    "run.threads=1",
    "data.holdout=0",
    "objective.mask_ratio=0.75",
    "objective.decoder.width=256",
    "objective.decoder.heads=8",
    "optim.warmup_steps=50",
    "train.global_batch=16",
    "engine.zero_stage=1",
    "log.every=50",
    "log.validate_every=0",
    "checkpoint.every=1000",
)
"""Settings of a pretraining of minutes, in addition to configs/pretrain/mae/demo.yaml."""


class StudyError(ForgeError):
    """A command of the study did not end as expected."""

    exit_code = 1


def run_step(name: str, *command: object) -> None:
    """Run a Python command of the repository on one thread.

    Args:
        name: name of the step on the console.
        command: arguments of Python.

    Raises:
        StudyError: the command failed; with the last line that it printed.
    """
    print(f"{name}: {command[0]} {command[1]}", file=sys.stderr, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise StudyError(f"{name}: exit code {done.returncode}: {' '.join(last)}")


def head(first: str, columns: Sequence[str]) -> Iterator[str]:
    """Yield the first lines of a Markdown table of numbers."""
    yield f"| {first} | {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * len(columns)}"


def cell(values: np.ndarray, interval: tuple[float, float]) -> str:
    """Return mean ± deviation over seeds, and the interval over test places."""
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread} [{interval[0]:.2f}, {interval[1]:.2f}]"
