"""Training runs in which something happens to the machine, and what must hold for them afterwards."""

import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from support.fault_kinds import Fault
from support.faults import Ended, Training
from support.preloaded import Process

from pretrain.checkpointing.checkpoint import step_of

STEPS, EVERY = 14, 4
"""Steps of the runs, and steps between two checkpoints."""
HOST = socket.gethostname()
HANG = 60.0
"""Seconds within which a run must end after a fault."""


@dataclass
class Breakdown(Fault):
    """Something that happens to the machine once a step is logged."""

    action: Callable[[list[Process]], object] = lambda ranks: None

    def strike(self, training: Training, ranks: list[Process]) -> None:
        self.action(ranks)


@dataclass
class BreakdownOfOwn(Breakdown):
    """The same for ranks that are children of this process."""

    def start(self, rank: int, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        with open(log, "ab") as output:
            return subprocess.Popen(
                command, cwd="/", env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
            )


def at_step(step: int, action: Callable[[], object]) -> Breakdown:
    return Breakdown(step=step, action=lambda ranks: action())


def write_config(path: Path, shards: Path) -> Path:
    """Write the config of a short run whose checkpoints have 70 MB."""
    config = {
        "run": {"dir": "set by each training", "seed": 7},
        "data": {"shards": str(shards), "holdout": 0.2, "read_threads": 1},
        "model": {"name": "spec_vit_tiny", "image_size": 16, "patch_size": 4, "bn_group": 4},
        "objective": {"mask_ratio": 0.75, "decoder": {"width": 64, "depth": 1, "heads": 2}},
        "optim": {"lr": 5e-4, "warmup_steps": 4},
        "train": {"steps": STEPS, "global_batch": 8, "micro_batch": 4},
        "engine": {"zero_stage": 2, "precision": "fp32"},
        "checkpoint": {"every": EVERY, "keep": 2},
        "log": {"every": 1, "samples": True},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def errors(ended: Ended) -> list[str]:
    return [line for line in ended.output.splitlines() if line.startswith("error: ")]


def check_failed(ended: Ended, *words: str) -> None:
    """The run has ended with code 1 and one line that has these words."""
    assert ended.codes == [1] * len(ended.codes), ended.output
    assert not ended.killed and ended.seconds < HANG, ended.output
    assert "Traceback" not in ended.output, ended.output
    assert len(errors(ended)) == 1, ended.output
    for word in (*words, "run the command again"):
        assert word in errors(ended)[0], ended.output


def check_goes_on(training: Training, reference: Training, exact: bool = True) -> None:
    """The same command completes the run with the samples and losses of one that nothing happened to."""
    newest = training.whole()[-1]
    ended = training.launch(1)
    assert ended.codes == [0], ended.output
    assert f"resumed from {newest}, " in ended.output and step_of(newest) > 0, ended.output
    check_same(training, reference, exact)


def check_same(training: Training, reference: Training, exact: bool = True) -> None:
    assert training.ledger() == reference.ledger()
    assert training.losses() == (reference.losses() if exact else pytest.approx(reference.losses(), rel=1e-5))
