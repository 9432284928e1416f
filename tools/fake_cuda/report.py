"""A counted step as plain values: what is printed, and what the budgets hold."""

from dataclasses import asdict
from typing import Any

from launch.planner.machines import Machine
from launch.planner.network import Cluster, Kind, collective_seconds
from tools.fake_cuda.counter import StepCount

PARTS = ("augment", "stem", "encoder", "decoder", "head", "momentum", "loss", "communication", "optimizer")


def to_dict(count: StepCount, machine: Machine, world: int) -> dict[str, Any]:
    """Return a step's counts and times as JSON values.

    ``seconds`` of a part and of the collectives are predictions; the collectives' are for GPUs of one node, as if
    nothing overlapped.
    """
    collectives = {
        " ".join(key): asdict(found) | {"seconds": _seconds(key[0], found.count, found.bytes, machine, world)}
        for key, found in count.collectives.items()
    }
    syncs = [
        {"kind": kind, "file": place.file, "function": place.function, "line": place.line, "count": number}
        for (kind, place), number in count.recorder.syncs.items()
    ]
    parts = {part: asdict(count.work[part]) for part in PARTS if part in count.work}
    return {"parts": parts, "collectives": collectives, "syncs": syncs, "calls": dict(count.recorder.calls)}


def _seconds(kind: str, number: int, size: int, machine: Machine, world: int) -> float:
    known: dict[str, Kind] = {"all_gather": "all_gather", "reduce_scatter": "reduce_scatter"}
    cluster = Cluster(machine, 1, world)
    return number * collective_seconds(known.get(kind, "all_reduce"), size / number, cluster)


def budget(counted: dict[str, Any]) -> dict[str, Any]:
    """Return the part of `to_dict` that budgets hold, in their units: kernels, megabytes, counts."""
    syncs: dict[str, int] = {}
    for sync in counted["syncs"]:
        name = f"{sync['kind']} in {sync['file']}:{sync['function']}"
        syncs[name] = syncs.get(name, 0) + sync["count"]
    return {
        "kernels": {part: work["kernels"] for part, work in counted["parts"].items()},
        "megabytes": {part: round(work["bytes"] / 1e6) for part, work in counted["parts"].items()},
        "collectives": {kind: found["count"] for kind, found in sorted(counted["collectives"].items())},
        "syncs": dict(sorted(syncs.items())),
    }
