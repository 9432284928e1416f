"""Time of an optimizer step by part: kernels by the roofline, communication by NCCL's model, and the host's time.

A kernel takes the longer of its operations over 72 % of the GPU's peak and its bytes over 90 % of its bandwidth, and at
least 2 us (kernel_costs.py). With a calibration, parts take their operations over the measured FLOP/s. Communication is
hidden behind the backward pass, except a fraction. A step takes the longer of the device's and the host's time.
"""

from dataclasses import dataclass, replace

from launch.planner.activations import Activations
from launch.planner.fused_parts import fused_seconds
from launch.planner.host_time import host_seconds
from launch.planner.kernel_costs import BANDWIDTH_SHARE
from launch.planner.memory import Layout
from launch.planner.network import Cluster, gathered_width, rounds_seconds, step_rounds
from pretrain.config import PretrainConfig
from pretrain.metrics.flops import recomputed_flops, sample_flops

PARTS = ("stem", "encoder", "decoder")
"""Parts of the network whose FLOP/s a calibration measures."""

OVERLAP = 0.8  # fraction of compute that can hide communication: a guess, not yet measured on a node
EXPOSED = 0.05  # fraction of communication that is never hidden
OPTIMIZER_BYTES = 44  # per owned weight: norm, clipping, AdamW on fp32 masters and moments, copy of the weight
AUGMENT_BYTES = 15  # per value of a tile that is resampled
COPY_BYTES = {0: (0, 0), 1: (34, 14), 2: (34, 14), 3: (27, 18)}
"""Bytes per weight and micro batch that DeepSpeed copies into buckets and casts, by stage, of fp32 and bf16 weights."""

COPY_SECONDS = {0: 0.0, 1: 2e-6, 2: 2e-6, 3: 8e-6}
"""Seconds per tensor and micro batch that these copies take at least, by stage: most are as short as a kernel can be.

All of these are counted by tools/fake_cuda.
"""


@dataclass(frozen=True)
class Rates:
    """Rates that a device achieves.

    Attributes:
        flops: FLOP/s by part as measured by a calibration; None for the roofline.
        memory: bytes/s of the optimizer's update.
        fixed: overhead in seconds per micro batch that no operation accounts for.
        source: description of the source.
    """

    flops: dict[str, float] | None
    memory: float
    fixed: float
    source: str


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by part.

    Attributes:
        parts: computation of this GPU by part, without communication.
        communication: total communication, hidden or not.
        exposed: communication that the step waits for.
        host: time that Python and launches need; the device computes meanwhile.
        tiles: number of tiles per step, over all GPUs.
        flops: FLOPs per GPU that the model requires.
    """

    parts: dict[str, float]
    communication: float
    exposed: float
    host: float
    tiles: int
    flops: float

    @property
    def device(self) -> float:
        return sum(self.parts.values()) + self.exposed

    @property
    def seconds(self) -> float:
        return max(self.device, self.host)

    @property
    def tiles_per_s(self) -> float:
        return self.tiles / self.seconds

    def mfu(self, peak: float) -> float:
        """Return the model FLOPs utilization of one GPU."""
        return self.flops / self.seconds / peak


def default_rates(cluster: Cluster, precision: str) -> Rates:
    """Return the roofline of a machine."""
    return Rates(None, BANDWIDTH_SHARE * cluster.machine.hbm, 0.0, f"roofline in {precision}, no calibration")


def grouped_flops(config: PretrainConfig, bands: int) -> dict[str, float]:
    """Return the operations of a tile by part: stem, encoder, decoder."""
    found = sample_flops(config, bands)
    known = {"stem": found.get("stem", 0), "decoder": found["decoder"]}
    return {**known, "encoder": sum(found.values()) - sum(known.values())}


def step_time(
    config: PretrainConfig, bands: int, trace: Activations, layout: Layout, cluster: Cluster, rates: Rates
) -> StepTime:
    """Return the time of one step of a run.

    Args:
        trace: with the activation checkpointing of the run.
        layout: stage and precision; they may differ from the config's.
    """
    accumulation = config.accumulation(layout.world)
    tiles, flops = accumulation * config.train.micro_batch, grouped_flops(config, bands)
    weights, micro_batch = trace.weights.total, config.train.micro_batch
    if rates.flops is None:
        micro = _roofline(config, bands, trace, layout, cluster)
        parts = {part: accumulation * seconds for part, seconds in micro.items()}
    else:
        parts = {part: tiles * flops[part] / rates.flops[part] for part in PARTS}
        parts["recomputation"] = tiles * recomputed_flops(config, bands) / rates.flops["encoder"]
    compute = sum(parts.values())
    parts["other"] = accumulation * rates.fixed
    owned = weights if layout.stage == 0 else layout.share(weights)
    parts["optimizer"] = OPTIMIZER_BYTES * owned / rates.memory
    width, wire = gathered_width(layout.stage, layout.precision), min(layout.wires)
    rounds = step_rounds(layout.stage, weights, width, wire, accumulation, *config.engine.buckets(weights))
    talk = rounds_seconds(rounds, cluster)
    exposed = max(talk - OVERLAP * compute, EXPOSED * talk)
    host = host_seconds(trace.costs.kernels(micro_batch), len(trace.weights.elements), layout, accumulation)
    return StepTime(parts, talk, exposed, host, tiles * layout.world, tiles * sum(flops.values()))


def _roofline(
    config: PretrainConfig, bands: int, trace: Activations, layout: Layout, cluster: Cluster
) -> dict[str, float]:
    """Return the device's seconds of a micro batch by part."""
    micro_batch, machine = config.train.micro_batch, cluster.machine
    fused = fused_seconds(config, bands, machine)
    parts = {
        part: fused[part] if part in fused else trace.costs.seconds(part, micro_batch, machine)
        for part in (*PARTS, "loss")
    }
    bandwidth = BANDWIDTH_SHARE * machine.hbm
    if config.augment.crop_scale is not None:
        parts["augment"] = AUGMENT_BYTES * micro_batch * bands * config.model.image_size**2 / bandwidth
    copied = COPY_BYTES[layout.stage][layout.precision == "bf16"] * trace.weights.total
    return parts | {"copies": copied / bandwidth + COPY_SECONDS[layout.stage] * len(trace.weights.elements)}


def scaled(cluster: Cluster, world: int) -> Cluster:
    """Return a cluster with ``world`` GPUs of the same machine."""
    gpus = min(world, cluster.gpus)
    return replace(cluster, nodes=max(1, world // gpus), gpus=gpus)
