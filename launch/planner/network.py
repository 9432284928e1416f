"""Time of ZeRO's collectives, from NCCL's own model of a ring (NCCL, src/graph/tuning.cc).

One collective of B bytes over N processes on M nodes takes ``base + (N - M) * inside + (M - 1) * between``, plus
(N - 1)/N of B (all-reduce: twice that) divided by the bus bandwidth. NCCL chooses the fastest of its protocols LL,
LL128 and Simple, which trade latency for bandwidth.
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

GROUPS = 2  # of parameters: with weight decay and without
REUSE = 1_000_000_000  # elements: stage3_max_reuse_distance in pretrain/engine/zero.py


@dataclass(frozen=True)
class Cluster:
    """GPUs of a run.

    Attributes:
        nodes, gpus: number of nodes, and GPUs per node.
        net: network bandwidth per node in bytes/s; None uses 85 % of the GPUs' shares.
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
        """Bus bandwidth of a ring through all GPUs, in bytes/s."""
        net = self.net or 0.85 * self.machine.nic * self.gpus
        return self.machine.nvlink if self.nodes == 1 else min(self.machine.nvlink, net)


@dataclass(frozen=True)
class Round:
    """Collectives of one kind in one step.

    Attributes:
        count: number of collectives.
        size: total bytes.
    """

    kind: Kind
    count: int
    size: float


def collective_seconds(kind: Kind, size: float, cluster: Cluster) -> float:
    """Return the seconds of one collective of ``size`` bytes, the size of the full, gathered tensor."""
    world, nodes = cluster.world, cluster.nodes
    if world == 1:
        return 0.0
    passes = 2 if kind == "all_reduce" else 1
    wire = passes * size * (world - 1) / world / cluster.bandwidth
    return min(
        base + passes * ((world - nodes) * inside + (nodes - 1) * between) + wire / share
        for base, inside, between, share in PROTOCOLS.values()
    )


def step_rounds(
    stage: int, weights: int, width: int, wire: int, accumulation: int, bucket: int, prefetch: int
) -> list[Round]:
    """Return the collectives of an optimizer step.

    Args:
        weights: number of weights P.
        width: bytes per gathered weight.
        wire: bytes per communicated gradient element.
        accumulation: micro batches per step.
        bucket, prefetch: elements per reduction, and per gather.

    In each micro batch, stage 3 gathers weights for the forward pass and regathers those that DeepSpeed has released
    (it keeps weights whose next use is less than 1e9 elements away). Stages 2 and 3 reduce gradients in each micro
    batch, lower stages only in the last one.
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
        Round("all_gather", GROUPS, width * weights),
    ]


def gathered_width(stage: int, precision: str) -> int:
    """Return the bytes per weight that a ZeRO stage gathers.

    Autocast keeps weights in fp32: stages 1 and 2 gather them as they are, stage 3 casts them before.
    """
    return 4 if precision == "fp32" or (precision == "autocast" and stage < 3) else 2


def rounds_seconds(rounds: list[Round], cluster: Cluster) -> float:
    """Return the seconds of all collectives, one after another."""
    return sum(
        collective.count * collective_seconds(collective.kind, collective.size / collective.count, cluster)
        for collective in rounds
        if collective.count
    )


def _calls(elements: float, bucket: int) -> int:
    return max(1, -(-int(elements) // max(1, bucket)))
