"""Throughput, utilization, time shares and memory of training steps."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.stream import TileBatch, TileStream
from pretrain.metrics.flops import device_peak, recomputed_flops, sample_flops
from pretrain.metrics.phase_timer import PhaseTimer
from pretrain.metrics.stragglers import CommunicationClock, Shares, gather_shares
from pretrain.metrics.timer import Timer
from pretrain.objectives.objective import Objective
from pretrain.resilience.watchdog import Watchdog


@dataclass(frozen=True)
class Metrics:
    """Scalars of the steps between two log steps, and every rank's shares of their time."""

    scalars: dict[str, float]
    shares: Shares

    def __str__(self) -> str:
        """Format the metrics for the console line."""
        values = self.scalars
        mfu = f"  MFU {values['mfu']:.0%}" if "mfu" in values else ""
        return f"{values['tiles_per_second']:.1f} tiles/s  data wait {values['data_wait_share']:.0%}{mfu}"


class MetricsProcessor:
    """Measures the training steps of a run; every rank has one.

    Args:
        config: config of the run.
        objective: objective whose module the engine trains.
        stream: stream of the training tiles.
        watchdog: notified when the rank waits for a collective.
        bands: number of bands of the tiles.

    Attributes:
        phases: timer of the phases of a step.
        communication: clock of the waits for other ranks, which measures while it is installed.
    """

    def __init__(
        self, config: PretrainConfig, objective: Objective, stream: TileStream, watchdog: Watchdog, bands: int
    ) -> None:
        self.config, self.stream = config, stream
        momentum = None if objective.momentum is None else objective.momentum.module
        self.phases = PhaseTimer(objective.module, momentum, stream.device)
        self.communication = CommunicationClock(watchdog)
        self._model_flops = sum(sample_flops(config, bands).values())
        self._hardware_flops = self._model_flops + recomputed_flops(config, bands)
        peak = config.log.peak_tflops
        self._peak = peak * 1e12 if peak else device_peak(config.engine.precision)

    def timed(self, batches: Iterator[TileBatch]) -> Generator[TileBatch, None, None]:
        """Yield the batches and time the wait for each as the phase ``data``."""
        while True:
            self.phases.mark("data")
            batch = next(batches, None)
            if batch is None:
                return
            self.phases.mark("other")
            yield batch

    def read(self, step: int, timer: Timer) -> Metrics:
        """Return the metrics of the steps up to ``step`` since the last call; every rank calls it.

        On a GPU this waits for the device.
        """
        interval = timer.read(
            step,
            data=self.stream.wait_seconds,
            communication=self.communication.seconds(),
            decoded=self.stream.decoded_bytes,
        )
        grown, seconds = interval.increments, interval.seconds
        decoded = torch.tensor(grown["decoded"], dtype=torch.float64, device=self.stream.device)
        shares = gather_shares(seconds, grown["data"], grown["communication"])
        with distributed.reading():
            decoded_bytes = float(distributed.all_reduce_sum(decoded))
        rate = interval.steps * self.config.train.global_batch / seconds
        scalars = {
            "tiles_per_second": rate,
            "gb_per_second": decoded_bytes / seconds / 1e9,
            "data_wait_share": float(shares.values[:, 0].mean()),
            "communication_share": shares.communication,
            "slowest_rank": shares.slowest,
            **self._utilization(rate),
            **memory(self.stream.device),
        }
        return Metrics(scalars | {f"time_{phase}": share for phase, share in self.phases.shares().items()}, shares)

    def _utilization(self, rate: float) -> dict[str, float]:
        """Return TFLOP/s per device and, if the device's peak is known, MFU and HFU (with recomputed FLOPs)."""
        samples = rate / distributed.world_size()
        values = {"tflops_per_device": samples * self._model_flops / 1e12}
        if self._peak:
            values |= {
                "mfu": samples * self._model_flops / self._peak,
                "hfu": samples * self._hardware_flops / self._peak,
            }
        return values


def memory(device: torch.device) -> dict[str, float]:
    """Return the current and peak memory of the rank that uses the most, in GB.

    Counts tensors on a GPU and the entire process on a CPU. Every rank calls it.
    """
    if device.type == "cuda":
        memory = [torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()]
    else:  # not getrusage: a child inherits the maximum of its parent
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        memory = [int(sizes["VmRSS"]) * 1024, int(sizes["VmHWM"]) * 1024]
    here = torch.tensor([memory], dtype=torch.float64, device=device)
    with distributed.reading():
        now, peak = distributed.all_gather(here).amax(0).tolist()
    return {"memory_gb": now / 1e9, "peak_memory_gb": peak / 1e9}
