"""The ranks' network: bandwidth of the two collectives that ZeRO uses most, and clock offsets."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from launch.doctor.cluster import Cluster
from launch.doctor.table import Row
from pretrain import distributed

SIZES_MIB = {"cpu": (1, 8, 64), "cuda": (1, 32, 256)}
REPEATS = {"cpu": 3, "cuda": 20}

INSIDE_NODE_GBS, BETWEEN_NODES_GBS = 10.0, 5.0
"""Bus bandwidth in GB/s below which a GPU node is broken. Within a node, H200s reach 360 and A100s 235 over NVLink
(nccl-tests), PCIe 4 cards about 20; below 10 the direct path is off. Between nodes, one 100 Gbit/s card gives 12.5."""

CLOCK_S = 1.0
"""Maximum clock offset; larger ones make the ranks' logs and file times misleading."""

PINGS = 5

Rates = Mapping[tuple[str, int], float]
"""Bus bandwidth in GB/s by (collective, MiB)."""


def check_bandwidth(cluster: Cluster) -> Row:
    """Measure the bus bandwidth of all-reduce and all-gather as in nccl-tests, and check their results."""
    if cluster.size == 1:
        return Row("yellow", "one process: nothing to measure", "run the doctor under the run's launcher")
    device = distributed.device()
    rates: dict[tuple[str, int], float] = {}
    for mib in SIZES_MIB[device.type]:
        for name, collective in (("all-reduce", _all_reduce), ("all-gather", _all_gather)):
            seconds, right = _measure(collective, mib << 20, device)
            if not right:
                fix = "NCCL_DEBUG=INFO shows the path that it takes; try NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1"
                return Row("red", f"{name} of {mib} MiB over {dist.get_backend()} gives wrong numbers", fix)
            share = (cluster.size - 1) / cluster.size * (2 if name == "all-reduce" else 1)
            rates[name, mib] = share * (mib << 20) / seconds / 1e9
    return judge_bandwidth(rates, device.type == "cuda", len(cluster.first_ranks), str(dist.get_backend()))


def judge_bandwidth(rates: Rates, on_gpu: bool, hosts: int, backend: str) -> Row:
    """Return the row for measured rates; on CPUs any rate passes, since gloo is only used for tests."""
    parts = []
    for collective in dict.fromkeys(name for name, _ in rates):
        sizes = {mib: rate for (name, mib), rate in rates.items() if name == collective}
        parts.append(f"{collective} " + "/".join(f"{rate:.2g}" for rate in sizes.values()))
    found = f"{', '.join(parts)} GB/s bus at {'/'.join(str(mib) for mib in sizes)} MiB over {backend}"
    limit, where = (INSIDE_NODE_GBS, "inside a node") if hosts == 1 else (BETWEEN_NODES_GBS, "between nodes")
    slowest = min(max(rate for (name, _), rate in rates.items() if name == collective) for collective, _ in rates)
    if on_gpu and slowest < limit:
        fix = (
            "NCCL_DEBUG=INFO shows the path: `nvidia-smi topo -m` and NCCL_P2P_DISABLE inside a node, "
            "NCCL_SOCKET_IFNAME and NCCL_IB_HCA between nodes"
        )
        return Row("red", f"{found}: under {limit:g} GB/s {where}", fix)
    return Row("green", found)


def check_clocks(cluster: Cluster) -> Row:
    """Compare every rank's clock with rank 0's, by pings through a gloo group."""
    if cluster.size == 1:
        return Row("yellow", "one process: nothing to compare", "run the doctor under the run's launcher")
    group = dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else None
    offsets = [_clock_offset(cluster, rank, group) for rank in range(1, cluster.size)]
    return judge_clocks(distributed.broadcast_object(offsets), [cluster.name(rank) for rank in range(cluster.size)])


def judge_clocks(offsets: Sequence[tuple[float, float]], names: Sequence[str]) -> Row:
    """Return the row for (seconds ahead of rank 0, round trip in seconds) of ranks 1, 2, ...

    Args:
        names: of all ranks.
    """
    ahead, trip = max(offsets, key=lambda offset: abs(offset[0]))
    name = names[1 + list(offsets).index((ahead, trip))]
    side = "ahead of" if ahead >= 0 else "behind"
    offset = f"{abs(ahead):.3g} s" if abs(ahead) >= 1 else f"{abs(ahead) * 1e3:.3g} ms"
    found = f"{name} is {offset} {side} {names[0]}, the largest offset; round trip {trip * 1e3:.2g} ms"
    if abs(ahead) > CLOCK_S:
        return Row("red", found, f"start chrony or ntpd on the host of {name}")
    return Row("green", found)


def _clock_offset(cluster: Cluster, other: int, group: dist.ProcessGroup | None) -> tuple[float, float]:
    """Return (seconds that ``other`` is ahead, round trip) of the fastest ping on rank 0; (0, 0) elsewhere."""
    stamp = torch.zeros(1, dtype=torch.float64)
    trips = []
    for _ in range(PINGS):
        if cluster.rank == 0:
            sent = time.time()
            dist.send(stamp, other, group)
            dist.recv(stamp, other, group)
            received = time.time()
            trips.append((stamp.item() - (sent + received) / 2, received - sent))
        elif cluster.rank == other:
            dist.recv(stamp, 0, group)
            stamp.fill_(time.time())
            dist.send(stamp, 0, group)
    return min(trips, key=lambda trip: trip[1], default=(0.0, 0.0))


def _measure(collective: Callable[[Tensor], Tensor], size: int, device: torch.device) -> tuple[float, bool]:
    """Return (seconds on the slowest rank, whether every rank's result was right) of a collective.

    Args:
        size: bytes of the result. The first collective, which opens the connections, isn't counted.
    """
    length = size // 4 // distributed.world_size() * distributed.world_size()
    values = torch.full((length,), float(distributed.rank() + 1), device=device)
    right = bool(abs(collective(values).double().mean().item() - _expected(collective)) < 1e-3)
    repeats = REPEATS[device.type]
    distributed.barrier()
    begin = time.perf_counter()
    for _ in range(repeats):
        collective(values)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    answers = distributed.gather_objects(((time.perf_counter() - begin) / repeats, right))
    return max(seconds for seconds, _ in answers), all(each for _, each in answers)


def _all_reduce(values: Tensor) -> Tensor:
    """Sum ``values`` over ranks."""
    return distributed.all_reduce_sum(values.clone())


def _all_gather(values: Tensor) -> Tensor:
    """Gather every rank's shard of ``values``; the result has the size of ``values``."""
    return distributed.all_gather(values[: len(values) // distributed.world_size()])


def _expected(collective: Callable[[Tensor], Tensor]) -> float:
    """Return the expected mean of the result if rank r contributes r + 1."""
    world = distributed.world_size()
    total = world * (world + 1) / 2
    return total if collective is _all_reduce else total / world
