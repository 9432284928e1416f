"""What the steps since the last log line have cost: rates, waits, parts of the time, utilization, memory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.data.stream import TileStream
from pretrain.metrics.flops import device_peak, recomputed_flops, sample_flops
from pretrain.metrics.step_parts import StepParts
from pretrain.metrics.stragglers import CommunicationClock, Shares, gather_shares
from pretrain.metrics.telemetry import Clock
from pretrain.objectives.objective import Objective
from pretrain.resilience.watchdog import Watchdog


@dataclass(frozen=True)
class Reading:
    """Scalars of a lap, and every rank's shares of its time."""

    scalars: dict[str, float]
    shares: Shares

    def __str__(self) -> str:
        """For the console line."""
        values = self.scalars
        mfu = f"  MFU {values['mfu']:.0%}" if "mfu" in values else ""
        return f"{values['tiles_per_second']:.1f} tiles/s  data wait {values['data_wait_share']:.0%}{mfu}"


class Meter:
    """Measures the steps of a run; every rank has one.

    Args:
        objective: with its module under the engine.
        stream: that tiles come from.
        step: that the run begins at.
    """

    def __init__(
        self,
        config: PretrainConfig,
        objective: Objective,
        stream: TileStream,
        watchdog: Watchdog,
        bands: int,
        step: int,
    ) -> None:
        self.config, self.stream = config, stream
        self.clock = Clock(step)
        momentum = None if objective.momentum is None else objective.momentum.module
        self.parts = StepParts(objective.module, momentum, stream.device)
        self._communication = CommunicationClock(watchdog)
        self._needed = sum(sample_flops(config, bands).values())
        self._done = self._needed + recomputed_flops(config, bands)
        peak = config.log.peak_tflops
        self._peak = peak * 1e12 if peak else device_peak(config.engine.precision)

    def read(self, step: int) -> Reading:
        """Of the lap that ends with step ``step``; every rank calls it. On a GPU it waits for the device."""
        lap = self.clock.lap(
            step,
            data=self.stream.wait_seconds,
            communication=self._communication.seconds(),
            decoded=self.stream.decoded_bytes,
        )
        decoded = torch.tensor(lap.waited.pop("decoded"), dtype=torch.float64, device=self.stream.device)
        shares = gather_shares(lap.seconds, **lap.waited)
        rate = lap.steps * self.config.train.global_batch / lap.seconds
        scalars = {
            "tiles_per_second": rate,
            "gb_per_second": float(distributed.all_reduce_sum(decoded)) / lap.seconds / 1e9,
            "data_wait_share": float(shares.values[:, 0].mean()),
            "communication_share": shares.communication,
            "slowest_rank": shares.slowest,
            **self._utilization(rate),
            **memory(self.stream.device),
        }
        return Reading(scalars | {f"time_{part}": share for part, share in self.parts.shares().items()}, shares)

    def _utilization(self, rate: float) -> dict[str, float]:
        """Operations per second and device, and their share of its peak where that is known: of those that training
        needs (MFU), and with what is computed twice (HFU)."""
        samples = rate / distributed.world_size()
        values = {"tflops_per_device": samples * self._needed / 1e12}
        if self._peak:
            values |= {"mfu": samples * self._needed / self._peak, "hfu": samples * self._done / self._peak}
        return values


def memory(device: torch.device) -> dict[str, float]:
    """Of the rank that holds most, now and at its peak: tensors on a GPU; on a CPU the whole process."""
    if device.type == "cuda":
        mine = [torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()]
    else:  # not getrusage: a child begins with the maximum of the process that started it
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        mine = [int(sizes["VmRSS"]) * 1024, int(sizes["VmHWM"]) * 1024]
    now, peak = distributed.all_gather(torch.tensor([mine], dtype=torch.float64, device=device)).amax(0).tolist()
    return {"memory_gb": now / 1e9, "peak_memory_gb": peak / 1e9}
