"""A seeded schedule of faults: a run is launched again and again, struck each time, and completes in the end."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.fault_kinds import Fault, Flip, FlipStaged, FullDisk, LinkCut, Signal, Stand, draw_signal
from support.faults import Ended, FineTuning, Training

from pretrain.checkpointing.checkpoint import step_of

HANG = 60.0


@dataclass
class Report:
    """The events of one training run under a schedule."""

    lines: list[str] = field(default_factory=list)
    faults: int = 0
    worlds: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Place:
    """What faults need to know of a run.

    Attributes:
        scratch: folder for what faults make themselves.
        shards: the dataset; None to leave it alone.
        stage: folder of staged copies; None without.
        config: folder of config and data, which all hosts see.
        small: the run folder is a disk of limited size.
        hosts: whether network namespaces may be made.
    """

    scratch: Path
    config: Path
    shards: Path | None = None
    stage: Path | None = None
    small: bool = False
    hosts: bool = field(default_factory=lambda: os.geteuid() == 0 and shutil.which("ip") is not None)


Draw = Callable[[random.Random, int, float, int], Fault]
"""Makes a fault from a generator, number of processes, seconds after the start, and a step (0: none)."""


def signals_only(rng: random.Random, world: int, after: float, step: int) -> Fault:
    return draw_signal(rng, world, after)


def every_kind(place: Place) -> Draw:
    """Return a function that draws any fault that is possible at a place."""

    def draw(rng: random.Random, world: int, after: float, step: int) -> Fault:
        kinds = ["signal"] * 4 + ["full disk"] * place.small + ["staged copy"] * (place.stage is not None)
        kinds += ["shards"] * 2 * (place.shards is not None) + ["stand"] * (world > 1)
        kinds += ["link", "host"] * (world > 1 and place.hosts)
        kind, share = rng.choice(kinds), rng.random()
        scratch = place.scratch / f"{rng.getrandbits(32):08x}"
        shared = [path for path in (place.config, place.stage) if path]
        match kind:
            case "full disk":
                return FullDisk(after, step)
            case "staged copy" if place.stage:
                return FlipStaged(after, step, folder=place.stage, place=share)
            case "shards" if place.shards:
                return Flip(after, step, folder=place.shards, place=share)
            case "stand":
                return Stand(after, step, rank=rng.randrange(world))
            case "link":
                return LinkCut(after, step, seconds=rng.choice([0, 8]), hosts_folder=scratch, shared=shared)
            case "host":
                return LinkCut(after, step, dies=True, hosts_folder=scratch, shared=shared)
        return draw_signal(rng, world, after)

    return draw


def run_schedule(
    training: Training,
    seed: int | str,
    faults: int,
    worlds: Sequence[int],
    span: float,
    draw: Draw = signals_only,
    steps: int = 0,
    limit: float = HANG,
) -> Report:
    """Launch a run repeatedly, each time with a fault and sometimes with damage after it, and finally without.

    Args:
        worlds: numbers of processes to choose from for each launch.
        span: seconds after the start within which a fault happens.
        steps: half of the faults wait for one of so many steps, too, counted from the newest checkpoint.
        limit: seconds from a fault to the end of the last rank; more is a hang.
    """
    rng, report = random.Random(seed), Report()
    for _ in range(faults):
        world = rng.choice(worlds)
        before = training.whole()
        begun = step_of(before[-1]) if before else 0
        waits = rng.random() < 0.5 and steps > 0
        step = begun + rng.randint(1, steps) if waits else 0
        fault = draw(rng, world, 0.0 if waits else rng.uniform(0, span), step)
        ended = training.launch(world, fault)
        report.worlds.add(world)
        report.faults += ended.struck
        damage = training.damage_newest(rng) if rng.random() < 1 / 3 else None
        after = training.whole()
        report.lines.append(
            f"{world} processes, {fault}: exit {ended.codes} in {ended.seconds:.1f} s, newest "
            f"{after[-1].name if after else 'none'}{f'; {damage}' if damage else ''}"
        )
        print(f"  {report.lines[-1]}", flush=True)
        _check_end(ended, fault, before, training, damage is not None, report, limit)
        if 0 in ended.codes:  # the run completed before the fault
            break
    world = rng.choice(worlds)
    report.worlds.add(world)
    before = training.whole()
    ended = training.launch(world)
    assert ended.codes == [0] * world, "\n".join(report.lines) + "\n" + ended.output
    _check_resume(ended, before, training, report)
    return report


def _check_end(
    ended: Ended, fault: Fault, before: list[Path], training: Training, damaged: bool, report: Report, limit: float
) -> None:
    story = "\n".join(report.lines) + "\n" + ended.output[-5000:]
    went_on = set(ended.codes) == {0}
    assert not ended.killed and (ended.seconds < limit or went_on), f"hung:\n{story}"
    assert ended.struck or went_on, story
    assert "Traceback" not in ended.output, story
    _check_resume(ended, before, training, report)
    if not isinstance(fault, Signal):
        _check_line(ended, fault, story)
        return
    if fault.number == signal.SIGKILL or 0 in ended.codes:
        return
    started = "WORLD SIZE" in ended.output
    if not started:  # before Python runs, the signal ends the interpreter; the launcher ends the other ranks
        assert set(ended.codes) <= {75, -fault.number, -signal.SIGTERM}, story
        return
    assert set(ended.codes) == {75}, story
    if "stopped at step" in ended.output and not damaged and not isinstance(training, FineTuning):
        stopped = int(ended.output.split("stopped at step ")[1].split()[0])
        assert step_of(training.whole()[-1]) == stopped, story


def _check_line(ended: Ended, fault: Fault, story: str) -> None:
    """Check the codes, and that a rank that failed by itself said why in a line."""
    started = "WORLD SIZE" in ended.output
    assert set(ended.codes) <= fault.codes | (set() if started else {-signal.SIGTERM}), story
    if set(ended.codes) & {1, 2, 77}:
        errors = [line for line in ended.output.splitlines() if "error: " in line]
        assert errors and any(fault.line in line for line in errors), story


def _check_resume(ended: Ended, before: list[Path], training: Training, report: Report) -> None:
    """Check that the launch resumed from an intact checkpoint and did not start over."""
    if isinstance(training, FineTuning):
        return
    story = "\n".join(report.lines) + "\n" + ended.output
    if "WORLD SIZE" in ended.output or "is complete at step" in ended.output:
        if before:
            assert f"resumed from {before[-1]}," in ended.output, story
        else:
            assert "resumed from" not in ended.output, story
