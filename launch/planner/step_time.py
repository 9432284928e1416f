"""Time of an optimizer step by part: operations over achieved FLOP/s, communication by NCCL's model.

The time of a part is its FLOPs (metrics/flops.py) over the achieved FLOP/s; all parts together take at least as long as
the memory needs to write and read their tensors. Communication is hidden behind the backward pass, except a fraction.
"""

from dataclasses import dataclass, replace

from launch.planner.memory import Layout
from launch.planner.network import Cluster, rounds_seconds, step_rounds
from pretrain.config import PretrainConfig
from pretrain.metrics.flops import recomputed_flops, sample_flops

OVERLAP = 0.8  # fraction of compute that can hide communication: a guess, not yet measured on a node
EXPOSED = 0.05  # fraction of communication that is never hidden
OPTIMIZER_BYTES = 30  # per weight: read gradient, master and both moments, write them and the weight


@dataclass(frozen=True)
class Rates:
    """Rates that a device achieves.

    Attributes:
        flops: FLOP/s by part: stem, encoder, decoder.
        memory: bytes/s of the optimizer's update.
        traffic: memory bandwidth in bytes/s for forward and backward, None if the measured FLOP/s include it.
        fixed: overhead in seconds per micro batch that no operation accounts for.
        source: description of the source.
    """

    flops: dict[str, float]
    memory: float
    traffic: float | None
    fixed: float
    source: str


EFFICIENCY = {"stem": 0.25, "encoder": 0.45, "decoder": 0.40}
"""Fractions of the peak without a calibration: guesses, based on published MFU of transformers."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by part.

    Attributes:
        parts: computation of this GPU by part, without communication.
        communication: total communication, hidden or not.
        exposed: communication that the step waits for.
        tiles: number of tiles per step, over all GPUs.
        flops: FLOPs per GPU that the model requires.
    """

    parts: dict[str, float]
    communication: float
    exposed: float
    tiles: int
    flops: float

    @property
    def seconds(self) -> float:
        return sum(self.parts.values()) + self.exposed

    @property
    def tiles_per_s(self) -> float:
        return self.tiles / self.seconds

    def mfu(self, peak: float) -> float:
        """Return the model FLOPs utilization of one GPU."""
        return self.flops / self.seconds / peak


def default_rates(cluster: Cluster, precision: str) -> Rates:
    """Return guessed fractions of the vendor's peak."""
    machine = cluster.machine
    flops = {part: share * machine.peak(precision) for part, share in EFFICIENCY.items()}
    return Rates(flops, machine.hbm, machine.hbm, 0.0, "guessed shares of the peak, no calibration")


def grouped_flops(config: PretrainConfig, bands: int) -> dict[str, float]:
    """Return the operations of a tile by part: stem, encoder, decoder."""
    found = sample_flops(config, bands)
    known = {"stem": found.get("stem", 0), "decoder": found["decoder"]}
    return {**known, "encoder": sum(found.values()) - sum(known.values())}


def step_time(
    config: PretrainConfig, bands: int, weights: int, made: float, layout: Layout, cluster: Cluster, rates: Rates
) -> StepTime:
    """Return the time of one step of a run.

    Args:
        weights: number of weights P.
        made: bytes of tensors allocated by a tile's forward and backward passes.
        layout: stage and precision; they may differ from the config's.
    """
    accumulation = config.accumulation(layout.world)
    tiles = accumulation * config.train.micro_batch
    flops = grouped_flops(config, bands)
    parts = {part: tiles * flops[part] / rates.flops[part] for part in ("stem", "encoder", "decoder")}
    again = recomputed_flops(config, bands)
    parts["recomputation"] = tiles * again / rates.flops["encoder"]
    compute = sum(parts.values())
    if rates.traffic is not None and 2 * made * tiles / rates.traffic > compute:
        parts["memory-bound rest"] = 2 * made * tiles / rates.traffic - compute
        compute += parts["memory-bound rest"]
    parts["other"] = accumulation * rates.fixed
    owned = weights if layout.stage == 0 else layout.share(weights)
    parts["optimizer"] = OPTIMIZER_BYTES * owned / rates.memory
    engine = config.engine
    width, wire = 4 if layout.precision == "fp32" else 2, min(layout.wires)
    rounds = step_rounds(layout.stage, weights, width, wire, accumulation, *engine.buckets(weights))
    talk = rounds_seconds(rounds, cluster)
    exposed = max(talk - OVERLAP * compute, EXPOSED * talk)
    return StepTime(parts, talk, exposed, tiles * layout.world, tiles * sum(flops.values()))


def scaled(cluster: Cluster, world: int) -> Cluster:
    """Return a cluster with ``world`` GPUs of the same machine."""
    gpus = min(world, cluster.gpus)
    return replace(cluster, nodes=max(1, world // gpus), gpus=gpus)
