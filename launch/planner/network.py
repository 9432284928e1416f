"""Time of ZeRO's collectives, by NCCL's own model of a ring (NCCL, src/graph/tuning.cc).

One collective of B bytes over N processes on M nodes takes ``base + (N - M) * inside + (M - 1) * between``, plus
(N - 1)/N of B (all-reduce: twice that) over the bus bandwidth. NCCL takes the fastest of its protocols LL, LL128 and
Simple, which trade latency for bandwidth.
"""

from dataclasses import dataclass
from typing import Literal

from launch.planner.machines import Machine

Kind = Literal["all_gather", "reduce_scatter", "all_reduce"]

PROTOCOLS = {
    "LL": (6.6e-6, 0.6e-6, 2.7e-6, 0.25),
    "LL128": (14.0e-6, 1.9e-6, 4.0e-6, 0.92),
    "Simple": (8.4e-6, 3.4e-6, 14.0e-6, 1.0),
}
"""Seconds of a collective's start, of a step over NVLink and of one over the network; share of the bandwidth."""

REUSE = 1_000_000_000  # elements: stage3_max_reuse_distance in pretrain/engine/zero.py


@dataclass(frozen=True)
class Cluster:
    """GPUs of a run.

    Attributes:
        nodes, gpus: nodes, and GPUs of each.
        net: bytes/s of a node's network; None takes the GPUs' shares at 85 %.
    """

    machine: Machine
    nodes: int
    gpus: int
    net: float | None = None

    @property
    def world(self) -> int:
        return self.nodes * self.gpus

    @property
    def bandwidth(self) -> float:
        """Bus bandwidth of a ring through all GPUs, bytes/s."""
        net = self.net or 0.85 * self.machine.nic * self.gpus
        return self.machine.nvlink if self.nodes == 1 else min(self.machine.nvlink, net)


@dataclass(frozen=True)
class Round:
    """Collectives of one kind in one step.

    Attributes:
        count: how many.
        size: bytes of all of them.
    """

    kind: Kind
    count: int
    size: float


def collective_seconds(kind: Kind, size: float, cluster: Cluster) -> float:
    """Return the seconds of one collective of ``size`` bytes (of the whole, gathered tensor)."""
    world, nodes = cluster.world, cluster.nodes
    if world == 1:
        return 0.0
    turns = 2 if kind == "all_reduce" else 1
    wire = turns * size * (world - 1) / world / cluster.bandwidth
    return min(
        base + turns * ((world - nodes) * inside + (nodes - 1) * between) + wire / share
        for base, inside, between, share in PROTOCOLS.values()
    )


def step_rounds(
    stage: int, weights: int, width: int, wire: int, accumulation: int, bucket: int, prefetch: int
) -> list[Round]:
    """Return the collectives of an optimizer step.

    Args:
        weights: P.
        width: bytes of a gathered weight.
        wire: bytes of a gradient on its way.
        accumulation: micro batches of the step.
        bucket, prefetch: elements of a reduction, and of a gathering.

    Stage 3 gathers in each micro batch: forward, then again what DeepSpeed has not kept (it keeps weights whose next
    use is less than 1e9 elements away). Gradients are reduced in each micro batch at stages 2 and 3, in the last alone
    below.
    """
    reductions = _calls(weights, bucket)
    if stage == 3:
        kept = min(1.0, REUSE / (2 * weights))
        gathered = weights * (2 - kept)
        calls = _calls(weights, prefetch) + (_calls(weights * (1 - kept), prefetch) if kept < 1 else 0)
        return [
            Round("all_gather", accumulation * calls, accumulation * width * gathered),
            Round("reduce_scatter", accumulation * reductions, accumulation * wire * weights),
        ]
    if stage == 0:
        return [Round("all_reduce", _calls(weights, 500_000_000), wire * weights)]
    times = accumulation if stage == 2 else 1
    # DeepSpeed 0.19 reduces the gradients of its buckets by all-reduce here, and each process keeps its part
    return [
        Round("all_reduce", times * reductions, times * wire * weights),
        Round("all_gather", reductions, width * weights),
    ]


def rounds_seconds(rounds: list[Round], cluster: Cluster) -> float:
    """Return the seconds of all collectives, one after another."""
    return sum(one.count * collective_seconds(one.kind, one.size / one.count, cluster) for one in rounds if one.count)


def _calls(elements: float, bucket: int) -> int:
    return max(1, -(-int(elements) // max(1, bucket)))
