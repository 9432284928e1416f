"""MAE steps with the visible patches gathered before the spectral stem, against the stem on the whole image.

The second way is what the published code does: features of all pixels, of which the transformer then takes the
visible patches. Here both are made of the same modules and weights; that they give the same losses in evaluation
mode is checked first. (In training mode batch norm takes its statistics over visible pixels in the one and over all
in the other.) A step is normalisation, forward, backward and AdamW on random int16 tiles, in plain torch. Every
measurement has a process of its own, so that a peak of memory is its own; rounds are interleaved.
"""

import argparse
import json
import math
import multiprocessing
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
from pydantic import ValidationError
from torch import Tensor

from pretrain.config import MaeConfig, PretrainConfig
from pretrain.flops import device_peak, encoder_training_flops, sample_flops
from pretrain.models import Normaliser, build_encoder
from pretrain.models.adapter import CHANNELS
from pretrain.models.initialise import initialise
from pretrain.models.patches import gather_tokens, patchify
from pretrain.models.registry import SPEC_VITS
from pretrain.models.vit import SpecViT
from pretrain.objectives.mae import MaskedAutoencoder
from pretrain.objectives.mae_decoder import choose_masks
from pretrain.objectives.masked_loss import masked_targets
from pretrain.optim import build_optimizer
from shards.errors import ConfigError, ForgeError

BANDS = 202
TOLERANCE = 1e-5  # relative, between the losses of both ways
STEPS, SECONDS = 2, 1.0  # a measurement takes at least so many steps and so long, after one that is not counted


@dataclass(frozen=True)
class Row:
    """One way: tiles per second, median with quartiles; peak of memory; operations done; MFU where a peak is known."""

    model: str
    way: str
    tiles_per_s: float
    low: float
    high: float
    peak_mb: float
    gflop_per_tile: float
    mfu: float | None


@dataclass(frozen=True)
class Ratio:
    """Gathered to full: speed in the same round, median with quartiles, and memory; how far their losses differ."""

    model: str
    speed: float
    low: float
    high: float
    memory: float
    loss_difference: float


def gathered_losses(model: MaskedAutoencoder, images: Tensor, noise: Tensor) -> Tensor:
    """Losses (B,) of normalised images (B, C, H, W) as we train: only visible patches go through the stem."""
    return model(images, noise)[0]


def full_losses(model: MaskedAutoencoder, images: Tensor, noise: Tensor) -> Tensor:
    """The same losses by the stem on all patches, of whose features the visible ones are then picked."""
    encoder = cast(SpecViT, model.encoder)
    masks = choose_masks(noise, model.mask_ratio)
    patches = patchify(images, encoder.patch_size)
    features = encoder.spectral_adapter(patches.flatten(1, 2)).view(*patches.shape[:3], CHANNELS)
    grid = (encoder.grid, encoder.grid)
    (latent,) = encoder.vit_core([gather_tokens(features, masks.visible)], [grid], masks.visible)
    truth = masked_targets(gather_tokens(patches, masks.masked), model.norm_pix)
    return (model.decoder(latent, masks).float() - truth).square().flatten(1).mean(1)


WAYS: dict[str, Callable[[MaskedAutoencoder, Tensor, Tensor], Tensor]] = {
    "gathered": gathered_losses,
    "full": full_losses,
}


def build(config: PretrainConfig, device: torch.device) -> MaskedAutoencoder:
    """The model of a run with this config, with its first weights."""
    model, mae = config.model, cast(MaeConfig, config.objective)
    encoder = build_encoder(model.name, model.image_size, model.patch_size, model.bn_group, model.attention)
    assert isinstance(encoder, SpecViT)
    encoder.core.fix_positions()
    decoder = mae.decoder
    sizes = (mae.norm_pix, decoder.width, decoder.depth, decoder.heads)
    module = MaskedAutoencoder(encoder, BANDS, mae.mask_ratio, *sizes, model.attention)
    initialise(module, "pretrain", config.run.seed)
    return module.to(device)


def batch(config: PretrainConfig, model: MaskedAutoencoder, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random tiles, int16 (B, C, H, W), and mask noise (B, T): a micro batch, the same for every process."""
    generator = torch.Generator().manual_seed(0)
    size, count = config.model.image_size, config.train.micro_batch
    tiles = torch.randint(0, 6000, (count, BANDS, size, size), dtype=torch.int16, generator=generator)
    return tiles.to(device), torch.rand(count, model.num_patches, generator=generator).to(device)


def loss_difference(config: PretrainConfig) -> float:
    """The largest relative difference between both ways' losses, in evaluation mode and fp32."""
    torch.backends.cudnn.allow_tf32 = False  # its 10 bits would hide what is compared here
    device = _device()
    model = build(config, device).eval()
    tiles, noise = batch(config, model, device)
    images = _normaliser(device)(tiles)
    with torch.no_grad():
        gathered, full = (losses(model, images, noise) for losses in WAYS.values())
    return ((gathered - full).abs() / full).max().item()


def measure(config: PretrainConfig, way: str) -> tuple[float, int]:
    """(seconds per step, peak bytes) of training steps in this process."""
    torch.set_num_threads(config.run.threads)
    device = _device()
    model = build(config, device)
    normalise, losses = _normaliser(device), WAYS[way]
    optimizer = build_optimizer(model, config.optim)
    tiles, noise = batch(config, model, device)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.engine.precision == "autocast"):
            loss = losses(model, normalise(tiles), noise).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    step()
    times: list[float] = []
    while len(times) < STEPS or sum(times) < SECONDS:
        times.append(step())
    return float(np.median(times)), _peak_bytes(device)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _normaliser(device: torch.device) -> Normaliser:
    return Normaliser([3000.0] * BANDS, [1732.0] * BANDS).to(device)  # to mean 0 and deviation 1


def _peak_bytes(device: torch.device) -> int:
    """Of tensors on a GPU; on a CPU of the whole process, Python and torch included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # not getrusage's ru_maxrss: a child begins with the maximum of the process that started it
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def compare(config: PretrainConfig, rounds: int) -> tuple[list[Row], Ratio]:
    """Both ways of one model.

    Raises:
        AssertionError: their losses differ.
        ConfigError: a process ran out of memory.
    """
    name = config.model.name
    difference = _in_own_process(loss_difference, config)
    if not difference <= TOLERANCE:
        raise AssertionError(f"{name}: losses of both ways differ by {difference:.1e}, more than {TOLERANCE:g}")
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in list(WAYS)[:: -1 if number % 2 else 1]:  # neither is always the first
            found[way].append(_in_own_process(measure, config, way))
    rates = {way: config.train.micro_batch / np.array([seconds for seconds, _ in found[way]]) for way in WAYS}
    peaks = {way: max(peak for _, peak in found[way]) for way in WAYS}
    rows = [_row(config, way, rates[way], peaks[way]) for way in WAYS]
    low, median, high = np.percentile(rates["gathered"] / rates["full"], [25, 50, 75])
    return rows, Ratio(name, median, low, high, peaks["gathered"] / peaks["full"], difference)


def _in_own_process(function: Callable[..., Any], config: PretrainConfig, *arguments: str) -> Any:
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, config, *arguments).result()
    except (BrokenProcessPool, torch.OutOfMemoryError):
        what = " ".join((config.model.name, *arguments))
        raise ConfigError(
            f"{what}: its process died, most likely out of memory: take a smaller --micro-batch"
        ) from None


def _row(config: PretrainConfig, way: str, rates: np.ndarray, peak_bytes: int) -> Row:
    low, median, high = (float(rate) for rate in np.percentile(rates, [25, 50, 75]))
    needed = sample_flops(config, BANDS)
    done = needed if way == "gathered" else needed | {"stem": encoder_training_flops(config.model, BANDS)["stem"]}
    peak = device_peak(config.engine.precision)
    mfu = median * sum(needed.values()) / peak if peak else None
    return Row(config.model.name, way, median, low, high, peak_bytes / 1e6, sum(done.values()) / 1e9, mfu)


def run_config(name: str, micro_batch: int, image_size: int, mask_ratio: float, precision: str) -> PretrainConfig:
    """The config of a run that trains like this.

    Raises:
        ConfigError: an unknown model, or sizes that don't fit.
    """
    if name not in SPEC_VITS:
        raise ConfigError(f"--models {name}: a model with a spectral stem and patches is one of {', '.join(SPEC_VITS)}")
    sections = {
        "run": {"dir": "", "threads": 1},
        "data": {"shards": ""},
        "model": {"name": name, "image_size": image_size, "bn_group": math.gcd(micro_batch, 8)},
        "objective": {"mask_ratio": mask_ratio},
        "train": {"steps": 1, "global_batch": micro_batch, "micro_batch": micro_batch},
        "engine": {"precision": precision},
    }
    try:
        return PretrainConfig.model_validate(sections)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{key}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")) from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _print_table(rows: Sequence[Row], ratio: Ratio) -> None:
    for row in rows:
        spread, tflops = f"[{row.low:.2f}, {row.high:.2f}]", row.tiles_per_s * row.gflop_per_tile / 1e3
        mfu = "-" if row.mfu is None else f"{row.mfu:.1%}"
        print(
            f"{row.model:<18} {row.way:<13} {row.tiles_per_s:8.2f} {spread:<17} {row.peak_mb:8.0f} "
            f"{row.gflop_per_tile:11.1f} {tflops:8.3f} {mfu:>6}"
        )
    print(
        f"{ratio.model:<18} {'gathered/full':<13} {ratio.speed:8.2f} {f'[{ratio.low:.2f}, {ratio.high:.2f}]':<17} "
        f"{ratio.memory:8.2f}   losses differ by {ratio.loss_difference:.1e}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_step", description=__doc__)
    parser.add_argument(
        "--models", default="spec_vit_tiny,spec_vit_small,spec_vit_base", help="with commas (default: %(default)s)"
    )
    parser.add_argument("--micro-batch", type=_positive, default=8, help="tiles of a step (default: %(default)s)")
    parser.add_argument("--rounds", type=_positive, default=5, help="default: %(default)s")
    parser.add_argument("--image-size", type=_positive, default=128, help="in pixels (default: %(default)s)")
    parser.add_argument("--mask-ratio", type=float, default=0.9, help="default: %(default)s")
    parser.add_argument("--precision", choices=("fp32", "autocast"), default="fp32", help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args(argv)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, 1 thread"
    setting = (
        f"{device}, torch {torch.__version__}, {arguments.precision}, micro batch {arguments.micro_batch}, "
        f"{arguments.image_size} px, mask ratio {arguments.mask_ratio:g}, {arguments.rounds} rounds"
    )
    all_rows, ratios = [], []
    try:
        sizes = (arguments.micro_batch, arguments.image_size, arguments.mask_ratio, arguments.precision)
        configs = [run_config(name, *sizes) for name in arguments.models.split(",")]
        print(f"{setting}\nMFU counts the operations that are needed, GFLOP/tile and TFLOP/s those that are done")
        head = ("tiles/s", "[quartiles]", "peak MB", "GFLOP/tile", "TFLOP/s", "MFU")
        print("{:<18} {:<13} {:>8} {:<17} {:>8} {:>11} {:>8} {:>6}".format("model", "way", *head), flush=True)
        for config in configs:
            rows, ratio = compare(config, arguments.rounds)
            _print_table(rows, ratio)
            all_rows += rows
            ratios.append(ratio)
    except ForgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        figures = {"setting": setting, "rows": [asdict(row) for row in all_rows]}
        arguments.json.write_text(
            json.dumps({**figures, "ratios": [asdict(ratio) for ratio in ratios]}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
