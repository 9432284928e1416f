"""The time of the stems alone, forward and backward, for ``python -m tools.bench_step --stem``.

Both have the same random pixels of EnMAP's bands, one after the other in each round, so ratios within a round compare
what ran at the same time. On a GPU in half precision they use their Triton kernels.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.models.adapter import SpectralAdapter
from pretrain.models.initialize import initialize
from pretrain.models.stem import Stem
from pretrain.models.wave import WaveStem, set_default_spectrum
from shards.sensors.sensor import get_sensor


@dataclass(frozen=True)
class StemTime:
    """A stem's milliseconds (median, quartiles), and its share of the first stem's time in the same round.

    Attributes:
        gflop: operations of a forward and a backward pass.
    """

    stem: str
    pixels: int
    gflop: float
    ms: float
    low: float
    high: float
    share: float
    share_low: float
    share_high: float


def measure_stems(samples: int, pixels: int, rounds: int, half: bool, device: torch.device) -> list[StemTime]:
    """Measure conv and wave, after a warm-up of each.

    Args:
        samples, pixels: of the micro batch, and of each sample.
        half: use autocast to bf16.
    """
    sensor = get_sensor("enmap")
    stems: dict[str, Stem] = {"conv": SpectralAdapter(), "wave": WaveStem()}
    for stem in stems.values():
        initialize(stem, "pretrain", 0)
        set_default_spectrum(stem.to(device), sensor.wavelength_nm, sensor.fwhm_nm)
    bands = len(sensor.wavelength_nm)
    x = torch.randn(samples, pixels, bands, generator=torch.Generator().manual_seed(0)).to(device)
    for stem in stems.values():
        _seconds(stem, x, half)
    seconds = np.array([[_seconds(stem, x, half) for stem in stems.values()] for _ in range(rounds)])
    shares = seconds / seconds[:, :1]
    times = []
    for number, (name, stem) in enumerate(stems.items()):
        gflop = samples * pixels * stem.training_flops(bands) / 1e9
        low, median, high = np.percentile(1e3 * seconds[:, number], [25, 50, 75]).tolist()
        share_low, share, share_high = np.percentile(shares[:, number], [25, 50, 75]).tolist()
        times.append(StemTime(name, samples * pixels, gflop, median, low, high, share, share_low, share_high))
    return times


def print_stems(times: Sequence[StemTime]) -> None:
    """Print a line for each stem."""
    for row in times:
        spread, share_spread = f"[{row.low:.1f}, {row.high:.1f}]", f"[{row.share_low:.2f}, {row.share_high:.2f}]"
        print(
            f"  {row.stem:<6} {row.pixels:8} pixels {row.gflop:8.1f} GFLOP {row.ms:8.1f} ms {spread:<18} "
            f"{row.share:6.2f} x {times[0].stem} {share_spread}",
            flush=True,
        )


def _seconds(stem: Stem, pixels: Tensor, half: bool) -> float:
    """Return the time of a forward and a backward pass."""
    _wait(pixels.device)
    began = time.perf_counter()
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=half):
        features = stem(pixels)
    features.sum().backward()
    _wait(pixels.device)
    seconds = time.perf_counter() - began
    stem.zero_grad()
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
