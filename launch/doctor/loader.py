"""The reader's rate, on all ranks simultaneously as in training, compared with the rate that the devices need."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from launch.doctor.cluster import Cluster, values
from launch.doctor.table import Row
from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.inputs import open_reader, plan_samples
from pretrain.data.stream import TileStream, micro_batches
from pretrain.metrics.flops import device_peak, sample_flops
from pretrain.registries import OBJECTIVES

MFU = 0.4
"""Fraction of a device's peak that a good run reaches; torchtitan reports 33 to 39 % for 8 B weights on H100s."""

READ_S, MULTIPLY_S = 3.0, 0.5


@dataclass(frozen=True)
class Rates:
    """Samples/s that one rank reads and that its device needs; ``flops``: FLOP/s of that device."""

    read: float
    needed: float
    flops: float


def check(cluster: Cluster) -> Row:
    """Stream the run's order through the run's loader for some seconds."""
    config = cluster.config
    streams: list[TileStream] = []
    opened = cluster.everywhere(lambda: streams.append(_open_stream(config)))
    failure = cluster.failure(opened)
    if failure:
        return Row("yellow", f"not measured: {failure}", "first fix the row 'shards'")
    shape = streams[0].reader.tile_shape
    try:
        answers = cluster.everywhere(lambda: _measure(config, streams[0], cluster))
    finally:
        streams[0].reader.close()
    failure = cluster.failure(answers)
    if failure:
        shards = " ".join(source.shards for source in config.data.each)
        return Row("red", failure, f"what the line names; `python -m shards verify {shards}` reads every byte")
    sample_bytes = 2 * shape[0] * shape[1] * shape[2] * streams[0].timestamps
    return judge(values(answers), [cluster.name(rank) for rank in range(cluster.size)], sample_bytes, config)


def judge(rates: Sequence[Rates], names: Sequence[str], sample_bytes: int, config: PretrainConfig) -> Row:
    """Return the row for the ranks' rates; ``sample_bytes``: int16 bytes of a sample with all its dates."""
    slowest = min(range(len(rates)), key=lambda rank: rates[rank].read / rates[rank].needed)
    rates_of_slowest = rates[slowest]
    read, needed = (
        f"{rate:.3g} samples/s ({rate * sample_bytes / 1e9:.2g} GB/s)"
        for rate in (rates_of_slowest.read, rates_of_slowest.needed)
    )
    found = (
        f"{read} with {config.data.read_threads} threads on {names[slowest]}, the tightest; "
        f"its device needs {needed} at {MFU:.0%} of {rates_of_slowest.flops / 1e12:.3g} TFLOP/s"
    )
    if rates_of_slowest.read >= rates_of_slowest.needed:
        return Row("green", found)
    fix = f"more data.read_threads (now {config.data.read_threads}) and cores for them; pack with --codec fast"
    if config.data.decode == "host" and distributed.device().type == "cuda":
        fix += "; data.decode=device"
    if config.data.stage is None:
        return Row("red", found, f"{fix}; data.stage on the nodes' own disks")
    return Row("yellow", f"{found}: at least the first epoch waits, before data.stage has its copies", fix)


def _open_stream(config: PretrainConfig) -> TileStream:
    """Open the run's stream without staging: the doctor copies no shards."""
    reader = open_reader(config.data)
    plan, _ = plan_samples(config, reader)
    timestamps = OBJECTIVES[config.objective.name].timestamps
    data = config.data
    return TileStream(reader, plan, distributed.device(), data.prefetch, None, timestamps, decode=data.decode)


def _measure(config: PretrainConfig, stream: TileStream, cluster: Cluster) -> Rates:
    read = _read_rate(config, stream, cluster.rank, cluster.size)
    flops = device_peak(config.engine.precision) or _multiply_rate(config.engine.precision)
    needed = MFU * flops / sum(sample_flops(config, stream.reader.tile_shape[0]).values())
    return Rates(read, needed, flops)


def _read_rate(config: PretrainConfig, stream: TileStream, rank: int, world_size: int) -> float:
    """Return samples/s over READ_S, after a first micro batch that allocates the buffers."""
    train = config.train
    world_batch = train.micro_batch * world_size
    batches = stream.batches(micro_batches(0, 1 << 40, world_batch, train.micro_batch, rank, world_size))
    try:
        next(batches)
        count, begin = 0, time.perf_counter()
        while not count or time.perf_counter() - begin < READ_S:
            count += len(next(batches).samples)
        return count / (time.perf_counter() - begin)
    finally:
        batches.close()


def _multiply_rate(precision: str) -> float:
    """Return the measured FLOP/s of large matrix products on this rank's device, whose peak is unknown."""
    device = distributed.device()
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    size = 512 if device.type == "cpu" else 8192
    matrix = torch.rand(size, size, device=device).to(dtype)
    count, begin = -1, 0.0
    while count < 1 or time.perf_counter() - begin < MULTIPLY_S:
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
        if not count:  # the first product, which loads the library, isn't counted
            begin = time.perf_counter()
    return count * 2 * size**3 / (time.perf_counter() - begin)
