"""The simulated year as text and as a plot: what each way to save and to restart leaves of the time for training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.planner.goodput import (
    INTERVALS,
    REPETITIONS,
    Goodput,
    Reliability,
    Saving,
    best_interval,
    daly,
    mean_goodput,
    young,
)
from launch.planner.loader import Tiles, reading
from launch.planner.search import Plan, Problem
from shards.files.atomic import write_atomic

HOST_LINK = 25e9
"""Bytes/s between a GPU and its host's pinned memory: PCIe 4.0 with 16 lanes, of which about 80 % are reached."""

SLACK = 1e-3
"""Share of the time that fewer saves may cost: goodput is flat around its best, and the file system is shared."""

COLUMNS = ("trained", "lost", "saving", "restart", "queue")


@dataclass(frozen=True)
class Policy:
    """A way to run a job: how it saves, and on which nodes it restarts."""

    name: str
    saving: Saving
    reliability: Reliability


@dataclass(frozen=True)
class Year:
    """A policy, an interval of saves in seconds, and what it leaves."""

    policy: Policy
    interval: float
    goodput: Goodput


def saved_bytes(plan: Plan, problem: Problem) -> int:
    """Return the bytes of a checkpoint: weights in fp32 and the optimizer's moments."""
    moments = 2 if plan.config.optim.name == "adamw" else 1
    return 4 * (1 + moments) * problem.traces[plan.checkpointing].weights.total


def policies(plan: Plan, problem: Problem, storage: float, reliability: Reliability) -> list[Policy]:
    """Return what is compared: both kinds of save without spares, and asynchronous saves with them."""
    size, cluster = saved_bytes(plan, problem), problem.cluster
    write = size / min(storage, cluster.nodes * 0.85 * cluster.machine.nic * cluster.gpus)
    asynchronous = Saving.asynchronous(size / cluster.world / HOST_LINK, write)
    alone = replace(reliability, spares=0)
    compared = [
        Policy("synchronous saves", Saving.synchronous(write), alone),
        Policy("asynchronous saves", asynchronous, alone),
    ]
    if reliability.spares:
        compared.append(Policy(f"asynchronous saves, spares: {reliability.spares}", asynchronous, reliability))
    return compared


def best_years(compared: Sequence[Policy]) -> list[Year]:
    """Return the policies at intervals as good as the best ones."""
    return [Year(policy, *best_interval(policy.saving, policy.reliability, SLACK)) for policy in compared]


def year_lines(years: Sequence[Year], plan: Plan, problem: Problem, tiles: Tiles, storage: float) -> list[str]:
    """Return the table of policies, its conclusions, and what reading adds to them."""
    reliability, synchronous = years[0].policy.reliability, years[0].policy.saving
    between, cluster = reliability.between_failures, problem.cluster
    lines = [
        f"A year on {cluster.nodes} x {cluster.gpus} {cluster.machine.name}, {REPETITIONS} times: a node fails every "
        f"{reliability.mtbf / 3600:,.0f} hours, the job every {_time(between)}; it trains again after "
        f"{_time(reliability.restart)}, and {_time(reliability.queue)} in the queue without a spare. "
        f"A checkpoint has {saved_bytes(plan, problem) / 1e9:.1f} GB: {_time(synchronous.blocking)} at "
        f"{storage / 1e9:g} GB/s, of which an asynchronous save blocks {_time(years[1].policy.saving.blocking)}.",
        f"  {'':<32}save every  checkpoint.every  {'  '.join(f'{name:>7}' for name in COLUMNS)}  requeues",
        *(_row(year, plan) for year in years),
    ]
    blocking = synchronous.blocking
    lines.append(
        f"Intervals are the longest ones within {SLACK:.1%} of the best. Of synchronous saves by formula: "
        f"Young {_time(young(blocking, between))}, Daly {_time(daly(blocking, between))}."
    )
    limit = reading_share(plan, problem, tiles, storage)
    if limit < 1:
        lines.append(
            f"Reading slows training to {limit:.0%} of its speed, unless data.stage helps; the shares are of that."
        )
    return lines


def _row(year: Year, plan: Plan) -> str:
    shares = "  ".join(f"{getattr(year.goodput, name):>7.2%}" for name in COLUMNS)
    steps = max(1, round(year.interval / plan.time.seconds))
    return f"  {year.policy.name:<32}{_time(year.interval):>10}  {steps:>16,}  {shares}  {year.goodput.requeues:>8.0f}"


def reading_share(plan: Plan, problem: Problem, tiles: Tiles, storage: float) -> float:
    """Return the share of the planned speed that cores and file system can feed, at most 1."""
    cluster = problem.cluster
    need = reading(tiles, plan.time.tiles_per_s / cluster.world, cluster.gpus, cluster.machine.cores, storage)
    return min(1.0, need.fed / cluster.gpus, storage / (cluster.nodes * need.node))


def _time(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size * (2 if size > 1 else 1):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1e3:.0f} ms"


def write_plot(path: Path, years: Sequence[Year]) -> None:
    """Draw goodput over the interval of saves for each policy, with Young's and Daly's intervals, as a PNG."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    intervals = INTERVALS[::3]
    for year in years:
        policy = year.policy
        shares = [100 * mean_goodput(each, policy.saving, policy.reliability).trained for each in intervals]
        (line,) = axes.semilogx(intervals / 60, shares, label=policy.name)
        axes.plot([year.interval / 60], [100 * year.goodput.trained], "o", color=line.get_color())
    blocking, between = years[0].policy.saving.blocking, years[0].policy.reliability.between_failures
    for name, formula, style in (("Young", young, ":"), ("Daly", daly, "--")):
        axes.axvline(formula(blocking, between) / 60, color="gray", linestyle=style, label=f"{name}, synchronous")
    best = max(year.goodput.trained for year in years)
    axes.set_ylim(max(0.0, 100 * best - 25), 100)
    axes.set_xlabel("minutes between saves")
    axes.set_ylabel("time that trains, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())
