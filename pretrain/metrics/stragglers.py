"""Time shares of each rank: reading tiles, computing, and waiting for other ranks; and the slowest rank."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pretrain import distributed
from pretrain.resilience.watchdog import Watchdog

SHOWN = 8
"""Maximum number of ranks in the table, which shows the slowest."""


class CommunicationClock:
    """Measures the waits for collectives while it is installed: on the host under gloo, on the GPU's stream under NCCL.

    All collectives of torch.distributed, including DeepSpeed's, end in ``Work.wait``; there is no hook, so `installed`
    replaces that method and restores it. On a GPU it blocks the stream, not the host: events around it measure how long
    the stream is blocked.

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
        wait = dist.Work.wait

        def timed(work: dist.Work, *arguments: Any, **options: Any) -> Any:
            with self._timing(), self._watchdog.doing("waiting for other ranks"):
                return wait(work, *arguments, **options)

        dist.Work.wait = timed  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            dist.Work.wait = wait  # type: ignore[method-assign]

    @contextmanager
    def _timing(self) -> Iterator[None]:
        if torch.cuda.is_available():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun

    def seconds(self) -> float:
        """Return the total time waited. Under NCCL this synchronizes with the device: call it at log steps only."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events = []
        return self._seconds


@dataclass(frozen=True)
class Shares:
    """Time shares since the last log step, 0 to 1, (ranks, 3): data, compute, communication."""

    values: torch.Tensor

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
        cells = [
            f"{rank}{'*' if rank == self.slowest else ''}: "
            + "/".join(f"{share:.0%}" for share in self.values[rank].tolist())
            for rank in shown
        ]
        more = f"; {len(order) - SHOWN} ranks wait longer" if len(order) > SHOWN else ""
        return f"data/compute/communication by rank (* slowest): {'  '.join(cells)}{more}"


def gather_shares(seconds: float, data: float, communication: float) -> Shares:
    """Gather the time shares of all ranks within ``seconds``; every rank calls it."""
    compute = max(seconds - data - communication, 0.0)
    times = torch.tensor([[data, compute, communication]], dtype=torch.float64, device=distributed.device())
    everyone = distributed.all_gather(times).cpu()
    return Shares(everyone / everyone.sum(1, keepdim=True).clamp(min=1e-9))
