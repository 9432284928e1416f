"""Time shares of each rank: reading tiles, computing, and waiting for other ranks; and the slowest rank."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pretrain import distributed
from pretrain.resilience.watchdog import Watchdog

SHOWN = 8
"""Maximum number of ranks in the table, which shows the slowest."""


WAITING = "waiting for other ranks"

COLLECTIVES = (
    "allreduce allreduce_coalesced reduce broadcast allgather _allgather_base allgather_into_tensor_coalesced "
    "reduce_scatter _reduce_scatter_base reduce_scatter_tensor_coalesced gather scatter alltoall alltoall_base barrier "
    "_end_coalescing"
).split()
"""Methods of a process group behind torch's collectives."""


class CommunicationClock:
    """Measures the waits for collectives while it is installed: on the host under gloo, on the GPU's stream under NCCL.

    All collectives of torch.distributed, including DeepSpeed's, are methods of a process group. They return a ``Work``,
    whose ``wait`` blocks the host (gloo) or the stream (NCCL), or under NCCL nothing: then they have queued a kernel on
    the current stream, which runs until the other ranks have come. There is no hook, so `installed` replaces these
    methods and restores them. On a GPU, events around them measure how long the stream is blocked; a collective that
    overlaps with computing on another stream counts, too.

    A host that reads a value waits for all of its device's work, not for other ranks alone: such reads
    (`distributed.reading`) are named to the watchdog but not measured.

    Args:
        watchdog: receives the activity while this rank waits for others.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Measure all waits in the enclosed block."""
        methods = [(dist.Work, "wait"), *((dist.ProcessGroup, name) for name in COLLECTIVES)]
        # as the class holds them: looked up, they would lose what binds them to an object, and not be restored whole
        before = [(owner, name, vars(owner)[name]) for owner, name in methods if name in vars(owner)]
        for owner, name, _ in before:
            setattr(owner, name, self._timed(getattr(owner, name), always=owner is dist.Work))
        try:
            with distributed.reads_marked(lambda: self._watchdog.doing(WAITING)):
                yield
        finally:
            for owner, name, method in before:
                setattr(owner, name, method)

    def _timed(self, method: Callable[..., Any], always: bool) -> Callable[..., Any]:
        """Return a method that is measured, always or where it returns no ``Work`` to wait for."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = _now()
            with self._watchdog.doing(WAITING):
                result = method(*arguments, **options)
            if always or result is None:
                self._add(begin, _now())
            return result

        return timed

    def _add(self, begin: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> None:
        if isinstance(begin, float):
            assert isinstance(end, float)
            self._seconds += end - begin
        else:
            assert not isinstance(end, float)
            self._events.append((begin, end))

    def seconds(self) -> float:
        """Return the total time waited. Under NCCL this synchronizes with the device: call it at log steps only."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events = []
        return self._seconds


def _now() -> "float | torch.cuda.Event":
    """Return the time, or on a GPU an event on the current stream."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@dataclass(frozen=True)
class Shares:
    """Time shares since the last log step.

    Attributes:
        values: 0 to 1, (ranks, 3): data, compute, communication.
        hosts: of the ranks.
    """

    values: torch.Tensor
    hosts: Sequence[str]

    @property
    def communication(self) -> float:
        """Mean share of communication over ranks."""
        return float(self.values[:, 2].mean())

    @property
    def slowest(self) -> int:
        """The rank that waits the least; the other ranks wait for it."""
        return int(self.values[:, 2].argmin())

    def __str__(self) -> str:
        order = self.values[:, 2].argsort().tolist()
        shown = sorted(order[:SHOWN])
        hosts = [self.hosts[rank] for rank in shown]
        begins = [f"{host} " if host != before else "" for before, host in zip(["", *hosts], hosts, strict=False)]
        cells = [
            f"{begin}{rank}{'*' if rank == self.slowest else ''}: "
            + "/".join(f"{share:.0%}" for share in self.values[rank].tolist())
            for begin, rank in zip(begins, shown, strict=True)
        ]
        more = f"; {len(order) - SHOWN} ranks wait longer" if len(order) > SHOWN else ""
        return f"data/compute/communication by rank (* slowest): {'  '.join(cells)}{more}"


def gather_shares(seconds: float, data: float, communication: float) -> Shares:
    """Gather the time shares of all ranks within ``seconds``; every rank calls it."""
    compute = max(seconds - data - communication, 0.0)
    times = torch.tensor([[data, compute, communication]], dtype=torch.float64, device=distributed.device())
    with distributed.reading():
        everyone = distributed.all_gather(times).cpu()
    return Shares(everyone / everyone.sum(1, keepdim=True).clamp(min=1e-9), distributed.host_names())
