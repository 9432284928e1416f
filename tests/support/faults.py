"""Training runs that are struck by a fault at a moment of a schedule, and what they leave."""

import json
import os
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from support.fault_kinds import Fault
from support.preloaded import Process
from support.processes import REPOSITORY, free_port

from finetune.evaluation.results import read_results
from pretrain.checkpointing.checkpoint import find_damage, list_checkpoints

PRETRAIN, FINETUNE = REPOSITORY / "launch" / "pretrain.py", REPOSITORY / "launch" / "finetune.py"


@dataclass
class Ended:
    """The end of a launch.

    Attributes:
        codes: exit codes by rank.
        output: output of all ranks.
        seconds: from the fault, or from the first rank's end by itself, to the last rank's end.
        killed: a rank had to be killed.
        struck: the fault happened while the ranks ran.
    """

    codes: list[int]
    output: str
    seconds: float
    killed: bool = False
    struck: bool = False


class Training:
    """A training run in a folder, launched like `srun --kill-on-bad-exit`: one plain process for each rank.

    Args:
        batch: samples of a step, which the ranks share in one micro batch each; 0 for the config's micro batch.
    """

    program, micro_batch = PRETRAIN, "train.micro_batch"

    def __init__(self, folder: Path, config: Path, *overrides: str, batch: int = 0) -> None:
        self.batch = batch
        self.folder, self.config, self.overrides = folder, config, overrides
        folder.mkdir(parents=True, exist_ok=True)

    def launch(self, world_size: int, fault: Fault | None = None) -> Ended:
        """Start all ranks, let the fault strike, and wait for the end."""
        fault, faulty = fault or Fault(), fault is not None
        log = self.folder.with_name(f"{self.folder.name}.log")  # a full disk is to hold no one's output
        log.write_bytes(b"")
        command = [sys.executable, str(self.program), "--config", str(self.config), f"run.dir={self.folder}"]
        if self.batch:
            command.append(f"{self.micro_batch}={self.batch // world_size}")
        begin, struck = time.monotonic(), False
        with fault.scene(self, world_size):
            place = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": fault.master, "MASTER_PORT": str(free_port())}
            ranks = [
                fault.start(
                    rank,
                    [*command, *self.overrides],
                    place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
                    log,
                )
                for rank in range(world_size)
            ]
            if faulty:
                while not (fault.at_start or self._is_due(fault, begin)) and None in [rank.poll() for rank in ranks]:
                    time.sleep(0.02)
                struck = fault.at_start or None in [rank.poll() for rank in ranks]
                fault.strike(self, ranks)
            since, killed = _wait(ranks, struck, fault)
            seconds = time.monotonic() - since
        return Ended([rank.wait() for rank in ranks], log.read_text(errors="replace"), seconds, killed, struck)

    def _is_due(self, fault: Fault, begin: float) -> bool:
        metrics = self.folder / "metrics.jsonl"
        logged = metrics.exists() and f'"step": {fault.step},' in metrics.read_text() if fault.step else True
        return logged and time.monotonic() - begin >= fault.after

    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def whole(self) -> list[Path]:
        """Return the checkpoints that pass verification, oldest first."""
        return [path for path in list_checkpoints(self.checkpoints()) if find_damage(path) is None]

    def losses(self) -> dict[int, float]:
        """Return the losses by step; a repeated step raises AssertionError."""
        found: dict[int, float] = {}
        for line in (self.folder / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if "loss" in record:
                assert record["step"] not in found, f"step {record['step']} is there twice"
                found[record["step"]] = record["loss"]
        return found

    def ledger(self) -> dict[int, list[tuple[int, int]]]:
        """Return what all ranks trained on, by step: sample numbers and tile rows, in order."""
        steps: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for path in sorted(self.folder.glob("samples-*.jsonl")):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                steps[record["step"]] += zip(record["samples"], record["tiles"], strict=True)
        return {step: sorted(samples) for step, samples in sorted(steps.items())}

    def tiles_by_source(self) -> dict[str, list[int]]:
        """Return the tile rows that were trained on in the order of the samples, by source; by "" without sources."""
        drawn: dict[int, tuple[str, int]] = {}
        for path in self.folder.glob("samples-*.jsonl"):
            for record in map(json.loads, path.read_text().splitlines()):
                sources = record.get("sources", [""] * len(record["samples"]))
                drawn |= dict(zip(record["samples"], zip(sources, record["tiles"], strict=True), strict=True))
        rows: dict[str, list[int]] = defaultdict(list)
        for _, (source, row) in sorted(drawn.items()):
            rows[source].append(row)
        return rows

    def damage_newest(self, rng: random.Random) -> str | None:
        """Flip a byte of or truncate a random file of the newest checkpoint, unless no other checkpoint is intact."""
        whole = self.whole()
        if len(whole) < 2:
            return None
        path = rng.choice(sorted(whole[-1].iterdir()))
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        if rng.random() < 0.5:
            data[place] ^= 1 << rng.randrange(8)
        else:
            del data[place:]
        path.write_bytes(data)
        return f"damaged {path.parent.name}/{path.name} at {place}"


class FineTuning(Training):
    """An evaluation of two trainings, whose checkpoints are in `work/` while they run."""

    program, micro_batch = FINETUNE, "full.micro_batch"

    def checkpoints(self) -> Path:
        return max((self.folder / "work").glob("*/checkpoints"), default=self.folder / "none", key=os.path.getmtime)

    def scores(self) -> list[tuple[str, int, list[dict[str, float]], dict[str, float]]]:
        """Return protocol, seed, scores by epoch and scores of the test of each training."""
        results = read_results(self.folder).results
        return [(one.protocol, one.seed, list(one.curve), dict(one.test)) for one in results]


def _wait(ranks: list[Process], faulty: bool, fault: Fault) -> tuple[float, bool]:
    """Wait for all ranks, ending them after a failure as srun does; return when it began and whether any was killed."""
    since = time.monotonic()
    failed: float | None = None
    while None in [rank.poll() for rank in ranks]:
        now = time.monotonic()
        fault.look(ranks)
        if failed is None and any(rank.returncode not in (None, 0) for rank in ranks):
            failed = now
            since = since if faulty else now
        if failed is not None and now - failed > 5 and not fault.ends_alone:
            for rank in ranks:
                rank.terminate()
        patience = 300 if fault.ends_alone else 60
        if (failed is not None and now - failed > patience) or now - since > 600:
            for rank in ranks:
                rank.kill()
            return since, True
        time.sleep(0.05)
    return since, False
