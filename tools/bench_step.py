"""Compare an MAE step with the plain implementation, and DeepSpeed with a plain torch loop.

- ``plain``: the published algorithm (tools/plain_mae.py), in a plain torch loop with torch's AdamW.
- ``ours``: int16 to the device, visible patches gathered before the stem, and the optimizations in
  docs/performance.md, in the same plain loop.
- ``zero1``, ``zero3``: ours in the training loop's engine, DeepSpeed ZeRO of that stage on one process.

All use the same weights; the losses of plain and ours are first checked to agree in evaluation mode. (In training,
plain computes batch-norm statistics over all pixels, ours over visible ones.) A step is everything after reading:
normalization, forward, backward, AdamW, on random int16 tiles. Every measurement runs in a separate process, so that
memory peaks are independent; rounds are interleaved, and ratios are taken within a round.

With --stem, the stems ``conv`` and ``wave`` are measured alone instead, on the visible pixels of a micro batch.
"""

import argparse
import json
import math
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.config.objective import MaeConfig
from pretrain.data.draws import to_device
from pretrain.engine.optimizers import build_optimizer
from pretrain.metrics.flops import device_peak, sample_flops
from pretrain.models.initialize import initialize
from pretrain.models.normalize import Normalizer
from pretrain.models.published import SPEC_VITS
from pretrain.models.wave import set_default_spectrum
from pretrain.objectives.mae import MaeObjective
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder
from pretrain.objectives.masks import MaskedPatches, choose_masks
from shards.cli import Parser, positive, run_command
from shards.config import check_config
from shards.errors import ConfigError
from shards.sensors.sensor import get_sensor
from tools.bench_stems import measure_stems, print_stems
from tools.plain_mae import PlainMaskedAutoencoder

BANDS = 202
TOLERANCE = 1e-5  # relative difference between the losses of plain and ours
STEPS, SECONDS = 2, 1.0  # minimum steps and duration of a measurement, after one warm-up step


WAYS = ("plain", "ours", "zero1", "zero3")


@dataclass(frozen=True)
class Row:
    """One variant: tiles per second (median, quartiles), peak memory, and MFU if the device's peak is known."""

    model: str
    way: str
    tiles_per_s: float
    low: float
    high: float
    peak_mb: float
    mfu: float | None


@dataclass(frozen=True)
class Ratio:
    """One variant relative to another: speed in the same round (median, quartiles), and memory."""

    model: str
    way: str
    to: str
    speed: float
    low: float
    high: float
    memory: float


def undrawn(config: PretrainConfig) -> MaskedAutoencoder:
    """Return the model of a run with this config, with torch-default weights."""
    normalize = Normalizer([3000.0] * BANDS, [1732.0] * BANDS)  # to mean 0 and deviation 1
    module = MaeObjective.build_module(config, BANDS, normalize)
    set_default_spectrum(module, get_sensor("enmap").wavelength_nm, get_sensor("enmap").fwhm_nm)
    return module


def build(config: PretrainConfig, device: torch.device) -> MaskedAutoencoder:
    """Return the model of a run with this config, with initial weights."""
    module = undrawn(config)
    initialize(module, "pretrain", config.run.seed)
    return module.to(device)


def batch(config: PretrainConfig, model: MaskedAutoencoder, device: torch.device) -> tuple[Tensor, MaskedPatches]:
    """Return random tiles, int16 (B, C, H, W), and masks, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    size, count = config.model.image_size, config.train.micro_batch
    tiles = torch.randint(0, 6000, (count, BANDS, size, size), dtype=torch.int16, generator=generator)
    noise = torch.rand(count, model.num_patches, generator=generator).numpy()
    return tiles.to(device), MaskedPatches(*to_device(choose_masks(noise, model.mask_ratio), device))


def loss_difference(config: PretrainConfig) -> float:
    """Return the largest relative difference between the losses of plain and ours, in fp32 evaluation mode."""
    torch.backends.cudnn.allow_tf32 = False  # its 10-bit mantissa would hide differences
    device = _device()
    model = build(config, device).eval()
    tiles, masks = batch(config, model, device)
    with torch.no_grad():
        ours = model(tiles, masks)[0]
        plain = PlainMaskedAutoencoder(model).eval()(_floats(model, tiles), masks)
    return ((ours - plain).abs() / plain).max().item()


def measure(config: PretrainConfig, way: str) -> tuple[float, int]:
    """Return (seconds per step, peak bytes) of training steps in this process."""
    torch.set_num_threads(config.run.threads)
    device = _device()
    model = build(config, device)
    tiles, masks = batch(config, model, device)
    step = (
        _engine_step(config, model, tiles, masks) if way == "zero3" else _plain_step(config, model, way, tiles, masks)
    )
    times: list[float] = []
    step()
    while len(times) < STEPS or sum(times) < SECONDS:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return float(np.median(times)), _peak_bytes(device)


def _plain_step(
    config: PretrainConfig, model: MaskedAutoencoder, way: str, tiles: Tensor, masks: MaskedPatches
) -> Callable[[], None]:
    """Return a step of a plain torch loop."""
    plain = PlainMaskedAutoencoder(model) if way == "plain" else None
    if plain is not None:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(plain.parameters(), lr=config.optim.lr)
    else:
        optimizer = build_optimizer(model, config.optim)

    def step() -> None:
        with torch.autocast(tiles.device.type, torch.bfloat16, enabled=config.engine.precision == "autocast"):
            losses = model(tiles, masks)[0] if plain is None else plain(_floats(model, tiles), masks)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _engine_step(
    config: PretrainConfig, model: MaskedAutoencoder, tiles: Tensor, masks: MaskedPatches
) -> Callable[[], None]:
    """Return a step of the training engine on one process."""
    from pretrain.engine.zero import ZeroEngine, init_distributed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in alone.items()})
    init_distributed()
    torch.set_num_threads(config.run.threads)
    optimizer = build_optimizer(model, config.optim)
    engine = ZeroEngine(model, optimizer, config.engine, config.train.micro_batch, 1, config.optim.clip)

    def step() -> None:
        engine.step(iter([engine(tiles, masks)[0].mean()]))

    return step


def _floats(model: MaskedAutoencoder, tiles: Tensor) -> Tensor:
    assert model.normalize is not None
    return model.normalize(tiles)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _peak_bytes(device: torch.device) -> int:
    """Return peak bytes of tensors on a GPU, or of the complete process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # not getrusage's ru_maxrss: a child inherits the maximum of its parent process
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def compare(config: PretrainConfig, rounds: int, ways: Sequence[str]) -> tuple[list[Row], list[Ratio]]:
    """Measure variants of one model; ratios compare ours to plain, and the others to ours.

    Raises:
        AssertionError: the losses of plain and ours differ.
        ConfigError: a process ran out of memory.
    """
    name = config.model.name
    difference = _in_own_process(loss_difference, config)
    if not difference <= TOLERANCE:
        raise AssertionError(f"{name}: losses of plain and ours differ by {difference:.1e}, more than {TOLERANCE:g}")
    measured: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways)[:: -1 if number % 2 else 1]:  # alternate the order
            measured[way].append(_in_own_process(measure, config, way))
    rates = {way: config.train.micro_batch / np.array([seconds for seconds, _ in measured[way]]) for way in ways}
    peaks = {way: max(peak for _, peak in measured[way]) for way in ways}
    rows = [_row(config, way, rates[way], peaks[way]) for way in ways]
    ratios = []
    for to, way in (("plain", "ours"), ("ours", "zero1"), ("ours", "zero3")):
        if not {to, way} <= set(ways):
            continue
        low, median, high = np.percentile(rates[way] / rates[to], [25, 50, 75])
        ratios.append(Ratio(name, way, to, median, low, high, peaks[way] / peaks[to]))
    return rows, ratios


def _in_own_process(function: Callable[..., Any], config: PretrainConfig, *arguments: str) -> Any:
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, config, *arguments).result()
    except (BrokenProcessPool, torch.OutOfMemoryError):
        what = " ".join((config.model.name, *arguments))
        raise ConfigError(f"{what}: its process died, most likely out of memory: use a smaller --micro-batch") from None


def _row(config: PretrainConfig, way: str, rates: np.ndarray, peak_bytes: int) -> Row:
    low, median, high = (float(rate) for rate in np.percentile(rates, [25, 50, 75]))
    peak = device_peak(config.engine.precision)
    mfu = median * sum(sample_flops(config, BANDS).values()) / peak if peak else None
    return Row(config.model.name, way, median, low, high, peak_bytes / 1e6, mfu)


def run_config(name: str, micro_batch: int, image_size: int, mask_ratio: float, precision: str) -> PretrainConfig:
    """Return the config of a run.

    Raises:
        ConfigError: the model is unknown, or the sizes don't fit.
    """
    if name not in SPEC_VITS:
        raise ConfigError(f"--models {name}: a model with a spectral stem and patches is one of {', '.join(SPEC_VITS)}")
    sections = {
        "run": {"dir": "none", "threads": 1},
        "data": {"shards": "none"},
        "model": {"name": name, "image_size": image_size, "bn_group": math.gcd(micro_batch, 8)},
        "objective": {"mask_ratio": mask_ratio},
        "train": {"steps": 1, "global_batch": micro_batch, "micro_batch": micro_batch},
        "engine": {"precision": precision},
    }
    return check_config(sections, PretrainConfig, f"--models {name}")


def _print_table(config: PretrainConfig, rows: Sequence[Row], ratios: Sequence[Ratio]) -> None:
    gflop, mask = sum(sample_flops(config, BANDS).values()) / 1e9, cast(MaeConfig, config.objective).mask_ratio
    print(f"{config.model.name}, mask ratio {mask:g}: {gflop:.1f} GFLOP a tile")
    for row in rows:
        mfu = "" if row.mfu is None else f"  MFU {row.mfu:.1%}"
        spread = f"[{row.low:.2f}, {row.high:.2f}]"
        speed = f"{row.tiles_per_s * gflop / 1e3:7.3f} TFLOP/s"
        print(f"  {row.way:<12} {row.tiles_per_s:8.2f} tiles/s {spread:<17} {row.peak_mb:8.0f} MB {speed}{mfu}")
    for ratio in ratios:
        spread = f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        print(f"  {f'{ratio.way}/{ratio.to}':<12} {ratio.speed:8.2f} x       {spread:<17} {ratio.memory:8.2f} x")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Measure, print and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.bench_step", description=__doc__)
    parser.add_argument("--models", default="spec_vit_tiny,spec_vit_small", help="with commas (default: %(default)s)")
    parser.add_argument("--micro-batch", type=positive, default=8, help="tiles of a step (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    parser.add_argument("--image-size", type=positive, default=128, help="in pixels (default: %(default)s)")
    parser.add_argument("--mask-ratios", default="0.75,0.9", help="with commas (default: %(default)s)")
    parser.add_argument("--ways", default=",".join(WAYS), help="with commas (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "autocast"), default="fp32", help="default: %(default)s")
    parser.add_argument("--stem", action="store_true", help="measure both stems alone, instead of steps")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.set_defaults(run=_measure_and_print)
    return parser


def _measure_and_print(arguments: argparse.Namespace) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, 1 thread"
    setting = (
        f"{device}, torch {torch.__version__}, {arguments.precision}, micro batch {arguments.micro_batch}, "
        f"{arguments.image_size} px, {arguments.rounds} rounds"
    )
    if arguments.stem:
        _measure_and_print_stems(arguments, setting)
        return
    all_rows, all_ratios = [], []
    ways = _ways(arguments.ways)
    configs = [
        run_config(name, arguments.micro_batch, arguments.image_size, float(ratio), arguments.precision)
        for name in arguments.models.split(",")
        for ratio in arguments.mask_ratios.split(",")
    ]
    print(f"{setting}; median [quartiles], peak memory", flush=True)
    for config in configs:
        rows, ratios = compare(config, arguments.rounds, ways)
        _print_table(config, rows, ratios)
        mask = {"mask_ratio": cast(MaeConfig, config.objective).mask_ratio}
        all_rows += [mask | asdict(row) for row in rows]
        all_ratios += [mask | asdict(ratio) for ratio in ratios]
    if arguments.json:
        figures = {"setting": setting, "rows": all_rows, "ratios": all_ratios}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def _measure_and_print_stems(arguments: argparse.Namespace, setting: str) -> None:
    torch.set_num_threads(1)
    print(f"{setting}; stems forward and backward, median [quartiles]", flush=True)
    figures: dict[str, Any] = {"setting": setting, "stems": []}
    for ratio in map(float, arguments.mask_ratios.split(",")):
        visible = round((1 - ratio) * arguments.image_size**2)
        print(f"mask ratio {ratio:g}")
        half = arguments.precision == "autocast"
        times = measure_stems(arguments.micro_batch, visible, arguments.rounds, half, _device())
        print_stems(times)
        figures["stems"] += [{"mask_ratio": ratio} | asdict(row) for row in times]
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def _ways(text: str) -> list[str]:
    ways = text.split(",")
    for way in ways:
        if way not in WAYS:
            raise ConfigError(f"--ways {way}: choose from {', '.join(WAYS)}")
    return ways


if __name__ == "__main__":
    sys.exit(main())
