"""Memory of one GPU over a training step, by part, as DeepSpeed 0.19.8 allocates it under our engine.

Derived from its source (runtime/zero/stage3.py, stage_1_and_2.py, engine.py) and checked against counted tensors by
tools/bench_plan.py. With P trained weights, N processes and w bytes per weight (4, or 2 under bf16):

========= ================ ========== ======================== =========== ========================================
stage     weights          master     gradients                AdamW       buckets of ``reduce_bucket_size``
========= ================ ========== ======================== =========== ========================================
0         4P               none       4P                       8P          none; a flat copy of the gradients
1         wP               4P/N       wP until the step        8P/N        one for each dtype of communication
2         wP               4P/N       4P/N                     8P/N        one for each dtype of communication
3         wP/N             4P/N       4P/N                     8P/N        kept for good, one for each dtype
========= ================ ========== ======================== =========== ========================================

If communication overlaps with the backward pass (on GPUs), stages 1 and 2 hold each bucket twice. Stage 3 adds the
gathered weights, which are views on a single process.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from launch.planner.activations import Activations, Device, Phase, Weights, image_dtype
from pretrain.config import PretrainConfig
from pretrain.config.engine import EngineConfig
from pretrain.config.optim import OptimConfig

Bytes = dict[str, int]
"""Memory by part."""

REUSE = 1_000_000_000  # stage3_max_reuse_distance and stage3_max_live_parameters in pretrain/engine/zero.py
TILE_SIZE = 128  # side of SpectralEarth's tiles in pixels: they are read in full, whatever the crop
FALLBACK = 500_000_000  # elements of a flat copy at stage 0 (DeepSpeedEngine.buffered_allreduce_fallback)
RUNTIME = 1_500_000_000  # CUDA context, cuBLAS and NCCL's buffers: a typical figure, not measured here


@dataclass(frozen=True)
class Moment:
    """The moment of a step with the most memory in use.

    Attributes:
        when: description of the moment.
        parts: bytes by part at that moment.
    """

    when: str
    parts: Bytes

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Layout:
    """How weights are distributed.

    Attributes:
        stage: ZeRO stage.
        precision: precision of the engine.
        world: number of processes.
        device: ``cuda`` overlaps communication with the backward pass and reduces in place; ``cpu`` does neither.
    """

    stage: int
    precision: str
    world: int
    device: Device

    @property
    def weight_bytes(self) -> int:
        return 2 if self.precision == "bf16" else 4

    @property
    def wires(self) -> tuple[int, ...]:
        """Bytes per element for each dtype in which gradients are reduced."""
        return {"fp32": (4,), "autocast": (4, 2), "bf16": (2,)}[self.precision]

    def share(self, size: int) -> int:
        return -(-size // self.world)


def peak_memory(
    config: PretrainConfig, activations: Activations, layout: Layout, micro_batch: int, bands: int
) -> Moment:
    """Return the moment of a step with the most memory in use under a layout, with the bytes of each part.

    Args:
        config: bucket sizes, optimizer, crops; its stage, checkpointing and micro batch are ignored.
        activations: activations traced with the intended checkpointing.
        bands: number of bands C of the tiles.
    """
    weights, engine = activations.weights, config.engine
    persistent = states(weights, config.optim, engine, layout) | _inputs(config, layout, micro_batch, bands)
    moments = [
        Moment(_when(phase), _sum(persistent, parts))
        for phase, parts in _backward(activations.phases(micro_batch), weights, engine, layout)
    ]
    moments.append(Moment("optimizer", _sum(persistent, _optimizer(weights, layout))))
    return max(moments, key=lambda moment: moment.total)


def _when(phase: Phase) -> str:
    return f"backward of {phase.module}" if phase.gradient else phase.module


def _sum(first: Bytes, second: Bytes) -> Bytes:
    return {name: first.get(name, 0) + second.get(name, 0) for name in first | second}


def states(weights: Weights, optim: OptimConfig, engine: EngineConfig, layout: Layout) -> Bytes:
    """Return the bytes that persist between steps."""
    total, width = weights.total, layout.weight_bytes
    moments = 8 if optim.name == "adamw" else 4
    parts = {"buffers": weights.buffers}
    if layout.stage == 0:
        return parts | {"weights": 4 * total, "optimizer": moments * total}
    owned = layout.share(total)
    parts |= {"master": 4 * owned, "optimizer": moments * owned}
    if layout.stage < 3:
        initial = (
            width * total if layout.device == "cpu" else 0
        )  # on a CPU, stages 1 and 2 also keep the initial weights
        return parts | {"weights": width * total + initial}
    small = sum(elements for elements in weights.elements if elements <= engine.param_persistence_threshold)
    gathered = {} if layout.world == 1 else {"gathered": _gather_bytes(layout) * small}
    buckets = sum(layout.wires) * engine.buckets(total)[0]
    return parts | {"weights": width * owned, "gradients": 4 * owned, "buckets": buckets} | gathered


def snapshot_bytes(weights: Weights, optim: OptimConfig, layout: Layout) -> int:
    """Return the bytes of host memory in which rank 0 keeps its share of a checkpoint while it is written."""
    moments = 8 if optim.name == "adamw" else 4
    return (4 + moments) * layout.share(weights.total) + weights.buffers


def _gather_bytes(layout: Layout) -> int:
    return 4 if layout.precision == "fp32" else 2


def _inputs(config: PretrainConfig, layout: Layout, micro_batch: int, bands: int) -> Bytes:
    """Return the bytes of tiles, what they are decoded from, resampled images and masks, and on GPUs of the runtime."""
    size = config.model.image_size
    resampled = config.augment.crop_scale is not None
    tiles = 2 * bands * (TILE_SIZE if resampled else size) ** 2
    tiles *= 2 if config.data.decode == "device" else 1  # planes take as much as tiles
    images = image_dtype(config, layout.device).itemsize * bands * size**2 if resampled else 0
    masks = 8 * (size // config.model.patch_size) ** 2
    parts = {"inputs": micro_batch * (tiles + images + masks)}
    return parts | ({"runtime": RUNTIME} if layout.device == "cuda" else {})


def _backward(
    phases: list[Phase], weights: Weights, engine: EngineConfig, layout: Layout
) -> Iterator[tuple[Phase, Bytes]]:
    """Yield the bytes that each phase adds: activations, gradients in flight, gathered weights."""
    done, waiting, bucket = 0, 0, engine.buckets(weights.total)[0]
    for phase in phases:
        reduced = 0
        if phase.gradient and waiting + phase.gradient > bucket:
            reduced, waiting = waiting, 0
        parts = {"activations": phase.peak} | _gradients(done, reduced, phase.gradient > 0, bucket, layout)
        yield phase, parts | _gathered(done, weights, engine, layout)
        done, waiting = done + phase.gradient, waiting + phase.gradient
    if layout.stage == 1:  # gradients outside the bucket exist twice: original and averaged
        waiting = 0
        rest = 4 * max(0, done - bucket)
        last = _gradients(0, 0, True, bucket, layout) | {"gradients": rest + 4 * layout.share(done)}
    else:
        last = _gradients(done, waiting, True, bucket, layout)
    yield Phase(0, "last reduction", 0), last


def _gradients(done: int, reduced: int, begun: bool, bucket: int, layout: Layout) -> Bytes:
    """Return the bytes of finished gradients, their buckets, and what a reduction of ``reduced`` allocates."""
    wire = min(layout.wires)
    if layout.stage == 3:
        copies = 2 if layout.device == "cpu" else 1  # gloo has no reduce-scatter: it all-reduces another copy
        cast = 1 if layout.precision == "autocast" else 0
        return {"reduction": (copies + cast) * wire * reduced + (4 * layout.share(reduced) if wire < 4 else 0)}
    if layout.stage == 0:
        return {"gradients": 4 * done, "reduction": 4 * min(reduced, FALLBACK)}
    doubled = 2 if layout.device == "cuda" else 1
    buckets = doubled * len(layout.wires) * layout.weight_bytes * bucket if begun else 0
    if layout.stage == 1:
        return {"buckets": buckets, "gradients": layout.weight_bytes * done}
    flat = wire * reduced if wire < 4 else 0
    return {"buckets": buckets, "gradients": 4 * layout.share(done), "reduction": flat}


def _gathered(done: int, weights: Weights, engine: EngineConfig, layout: Layout) -> Bytes:
    """Return the bytes of ZeRO-3's gathered weights: those used again soon stay, others are prefetched by bucket."""
    if layout.stage < 3 or layout.world == 1:
        return {}
    ahead = engine.buckets(weights.total)[1] + weights.largest
    live = min(weights.total - done, max(REUSE // 2 + ahead - done, ahead))
    return {"gathered": _gather_bytes(layout) * live}


def _optimizer(weights: Weights, layout: Layout) -> Bytes:
    """Return the bytes that the update allocates besides the states: gradients and their flat copy."""
    if layout.stage == 0:
        return {"gradients": 4 * weights.total}
    owned = 4 * layout.share(weights.total)
    flat = owned if layout.stage == 3 or layout.precision != "bf16" else 0
    return {"gradients": owned, "flat gradients": flat} if layout.stage < 3 else {"flat gradients": flat}
