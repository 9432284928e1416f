"""Training runs that are killed, signaled and damaged on a seeded schedule and resumed until they complete."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.processes import REPOSITORY, free_port

from pretrain.checkpointing.checkpoint import find_damage, list_checkpoints, step_of

PRETRAIN = REPOSITORY / "launch" / "pretrain.py"
HANG = 60.0


@dataclass(frozen=True)
class Fault:
    """A signal to one rank or all ranks, some seconds after the start, or once a step is logged."""

    number: signal.Signals
    ranks: list[int]
    after: float = 0.0
    step: int = 0

    def strike(self, ranks: Sequence[subprocess.Popen]) -> None:
        """Do it to the processes, in the order of ranks."""
        for number in self.ranks:
            if ranks[number].poll() is None:
                ranks[number].send_signal(self.number)

    def __str__(self) -> str:
        return f"{self.number.name} to {self.ranks} after " + (
            f"step {self.step}" if self.step else f"{self.after:.1f} s"
        )


@dataclass
class Ended:
    """The end of a launch: exit codes by rank, output of all ranks, seconds since the fault or the first exit."""

    codes: list[int]
    output: str
    seconds: float
    killed: bool = False


class Training:
    """A training run in a folder, launched like `srun --kill-on-bad-exit`: one plain process for each rank."""

    def __init__(self, folder: Path, config: Path, *overrides: str, log: Path | None = None) -> None:
        self.folder, self.config, self.overrides = folder, config, overrides
        self._log = log or folder / "output.log"
        folder.mkdir(parents=True, exist_ok=True)

    def launch(self, world_size: int, fault: Fault | None = None) -> Ended:
        """Start all ranks, inject the fault, and wait for the end; a hang raises AssertionError."""
        shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        command = [sys.executable, str(PRETRAIN), "--config", str(self.config), f"run.dir={self.folder}"]
        begin = time.monotonic()
        with open(self._log, "wb") as output:
            ranks = [
                subprocess.Popen(
                    [*command, *self.overrides],
                    cwd="/",
                    env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                for rank in range(world_size)
            ]
            if fault is not None:
                while not self._is_due(fault, begin) and None in [rank.poll() for rank in ranks]:
                    time.sleep(0.02)
                fault.strike(ranks)
            since, killed = _wait(ranks, fault is not None)
        return Ended([rank.wait() for rank in ranks], self._log.read_text(), time.monotonic() - since, killed)

    def _is_due(self, fault: Fault, begin: float) -> bool:
        metrics = self.folder / "metrics.jsonl"
        logged = metrics.exists() and f'"step": {fault.step},' in metrics.read_text() if fault.step else True
        return logged and time.monotonic() - begin >= fault.after

    def whole(self) -> list[Path]:
        """Return the checkpoints that pass verification, oldest first."""
        return [path for path in list_checkpoints(self.folder / "checkpoints") if find_damage(path) is None]

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


def _wait(ranks: list[subprocess.Popen], faulty: bool) -> tuple[float, bool]:
    """Wait for all ranks, ending them after a failure as srun does; return when it began and whether any was killed."""
    since = time.monotonic()
    failed: float | None = None
    while None in [rank.poll() for rank in ranks]:
        now = time.monotonic()
        if failed is None and any(rank.returncode not in (None, 0) for rank in ranks):
            failed = now
            since = since if faulty else now
        if failed is not None and now - failed > 5:
            for rank in ranks:
                rank.terminate()
        if (failed is not None and now - failed > 30) or now - since > 600:
            for rank in ranks:
                rank.kill()
            return since, True
        time.sleep(0.05)
    return since, False


@dataclass
class Report:
    """The events of one training run under a schedule."""

    lines: list[str] = field(default_factory=list)
    faults: int = 0
    worlds: set[int] = field(default_factory=set)


def run_schedule(training: Training, seed: int, faults: int, worlds: tuple[int, ...], span: float) -> Report:
    """Launch a run repeatedly, each time with a fault and sometimes with damage after it, and finally without.

    Args:
        worlds: numbers of processes to choose from for each launch.
        span: seconds after the start within which a fault happens.
    """
    rng, report = random.Random(seed), Report()
    for _ in range(faults):
        world = rng.choice(worlds)
        number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
        ranks = list(range(world)) if rng.random() < 0.5 else [rng.randrange(world)]
        fault = Fault(number, ranks, rng.uniform(0, span))
        before = training.whole()
        ended = training.launch(world, fault)
        report.worlds.add(world)
        report.faults += 1
        damage = training.damage_newest(rng) if rng.random() < 1 / 3 else None
        after = training.whole()
        report.lines.append(
            f"{world} processes, {fault}: exit {ended.codes} in {ended.seconds:.1f} s, newest "
            f"{after[-1].name if after else 'none'}{f'; {damage}' if damage else ''}"
        )
        _check_end(ended, fault, before, training, damage is not None, report)
        if 0 in ended.codes:  # the run completed before the fault
            break
    world = rng.choice(worlds)
    report.worlds.add(world)
    before = training.whole()
    ended = training.launch(world)
    assert ended.codes == [0] * world, ended.output
    _check_resume(ended, before, report)
    return report


def _check_end(
    ended: Ended, fault: Fault, before: list[Path], training: Training, damaged: bool, report: Report
) -> None:
    story = "\n".join(report.lines) + "\n" + ended.output
    assert not ended.killed and ended.seconds < HANG, f"hung:\n{story}"
    assert "Traceback" not in ended.output, story
    _check_resume(ended, before, report)
    if fault.number == signal.SIGKILL or 0 in ended.codes:
        return
    started = "WORLD SIZE" in ended.output
    if not started:  # before Python runs, the signal ends the interpreter; the launcher ends the other ranks
        assert set(ended.codes) <= {75, -fault.number, -signal.SIGTERM}, story
        return
    assert set(ended.codes) == {75}, story
    if "stopped at step" in ended.output and not damaged:
        stopped = int(ended.output.split("stopped at step ")[1].split()[0])
        assert step_of(training.whole()[-1]) == stopped, story


def _check_resume(ended: Ended, before: list[Path], report: Report) -> None:
    """Check that the launch resumed from an intact checkpoint and did not start over."""
    story = "\n".join(report.lines) + "\n" + ended.output
    if "WORLD SIZE" in ended.output or "is complete at step" in ended.output:
        if before:
            assert f"resumed from {before[-1]}," in ended.output, story
        else:
            assert "resumed from" not in ended.output, story
