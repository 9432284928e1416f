"""Results of the device's own code paths, compared with the CPU: attention, blocks, stem, loss, crops, tiles."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pretrain.data.augment import Crop
from pretrain.data.restore import restore_tiles, send_planes
from pretrain.kernels.launching import kernels_problem, usable
from pretrain.models.adapter import SpectralAdapter
from pretrain.models.attention import Backend, attention, xformers_problem
from pretrain.models.initialize import initialize
from pretrain.models.normalize import Normalizer
from pretrain.models.patches import gather_tokens
from pretrain.models.stem import StemKernel, set_stem_kernel
from pretrain.models.transformer import Block, set_block_kernels
from pretrain.models.wave import WaveStem, set_default_spectrum
from pretrain.objectives.masked_loss import fused_errors, masked_targets, num_counted, squared_errors
from shards.format.bounded import BoundedPredictor
from shards.format.codec_registry import PRESETS
from shards.format.planes import COLUMNS
from shards.sensors.sensor import NODATA, get_sensor
from tools.gpu_check.hardware import mean_seconds
from tools.gpu_check.row import Row, error_row, relative_error

HEAD_DIMS = (32, 40, 64, 80, 88, 104)
BANDS = 202
BF16, FP32 = 2e-2, 2e-5
"""Largest relative errors: a few roundings of each value, and sums in another order."""

STEM_GRADIENT = 1e-1
"""The same for gradients in front of batch norms, which are small differences of large sums."""

STEM_GRADIENT_FP32 = 5e-3
"""The same in fp32; how much of the differences is rounding depends on the order of sums, and so on the device."""

WAVE_FP32 = 1e-3
"""Largest error of the wave stem's features in fp32: devices differ in sines of angles of a thousand radians."""


def checks(device: torch.device, seconds: float) -> Iterator[Row]:
    """Yield the largest errors against float64 or the CPU."""
    yield from _attention(device)
    yield from _block(device)
    yield from _stem(device)
    yield from _loss(device)
    yield from _tiles(device)
    yield from _decoding(device)


def _attention(device: torch.device) -> Iterator[Row]:
    xformers = device.type == "cuda" and xformers_problem() is None
    backends: tuple[Backend, ...] = ("xformers", "sdpa") if xformers else ("sdpa",)
    for backend in backends:
        for head_dim in HEAD_DIMS:
            for packed in (False, True):
                yield _attention_row(device, backend, head_dim, packed)


def _attention_row(device: torch.device, backend: Backend, head_dim: int, packed: bool) -> Row:
    shape = (1, 3 * 64 + 2 * 17, 4, head_dim) if packed else (2, 103, 4, head_dim)
    seqlens = [(3, 64), (2, 17)] if packed else None
    generator = torch.Generator().manual_seed(head_dim)
    values = [torch.randn(shape, generator=generator).bfloat16() for _ in range(3)]
    results: list[list[Tensor]] = []
    ways: list[tuple[torch.device, Backend, torch.dtype]] = [
        (device, backend, torch.bfloat16),
        (torch.device("cpu"), "math", torch.float64),
    ]
    for to, kind, dtype in ways:
        query, key, value = inputs = [value.to(to, dtype, copy=True).requires_grad_() for value in values]
        output = attention(query, key, value, kind, seqlens)
        output.square().sum().backward()
        results.append([output, *(x.grad for x in inputs if x.grad is not None)])
    error = max(relative_error(actual, expected) for actual, expected in zip(*results, strict=True))
    name = f"{backend}, heads of {head_dim}{', packed' if packed else ''}"
    return error_row(f"attention and gradients: {name}", error, BF16)


def _block(device: torch.device) -> Iterator[Row]:
    if kernels_problem(device) is not None:
        yield Row("transformer block with kernels", "Triton can't be used")
        return
    x = torch.randn(4, 103, 640, generator=torch.Generator().manual_seed(3)).bfloat16()
    exact = _block_results(x.double(), torch.device("cpu"))
    results = _block_results(x, device)
    error = max(relative_error(actual, expected) for actual, expected in zip(results, exact, strict=True))
    yield error_row("transformer block with kernels: output and gradients", error, BF16)


def _block_results(x: Tensor, device: torch.device) -> list[Tensor]:
    """Return the output, and the gradients of input and weights."""
    block = Block(x.shape[-1], 8, 4 * x.shape[-1], "sdpa")
    initialize(block, "block", 0)
    block = block.bfloat16().to(device, x.dtype)
    set_block_kernels(block, device)
    x = x.to(device, copy=True).requires_grad_()
    output = block(x)
    (output * torch.linspace(-1, 1, x.shape[-1], device=device, dtype=x.dtype)).sum().backward()
    leaves = [x, *block.parameters()]
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _stem(device: torch.device) -> Iterator[Row]:
    pixels = torch.randn(16, 200, BANDS, generator=torch.Generator().manual_seed(0))
    ways: list[tuple[StemKernel, torch.dtype]] = [("eager", torch.float32), ("eager", torch.bfloat16)]
    if kernels_problem(device) is None:
        ways.append(("triton", torch.bfloat16))
    for name, build, fp32 in (("conv", SpectralAdapter, FP32), ("wave", WaveStem, WAVE_FP32)):
        exact = _stem_results(build(bn_group=8), pixels.double(), torch.device("cpu"), torch.float64, "eager")
        for kernel, dtype in ways:
            half = dtype == torch.bfloat16
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                results = _stem_results(build(bn_group=8), pixels, device, torch.float32, kernel)
            errors = [relative_error(actual, expected) for actual, expected in zip(results, exact, strict=True)]
            gradients = STEM_GRADIENT if half else STEM_GRADIENT_FP32
            yield error_row(f"stem {name}, {kernel}, {dtype}: features", errors[0], BF16 if half else fp32)
            yield error_row(f"stem {name}, {kernel}, {dtype}: gradients", errors[1], gradients)


def _stem_results(
    stem: SpectralAdapter | WaveStem, pixels: Tensor, device: torch.device, dtype: torch.dtype, kernel: StemKernel
) -> tuple[Tensor, Tensor]:
    """Return features, and the gradients of all weights in one vector, each divided by its largest value."""
    initialize(stem, "stem", 0)
    set_default_spectrum(stem, get_sensor("enmap").wavelength_nm, get_sensor("enmap").fwhm_nm)
    set_stem_kernel(stem, kernel, device)
    stem = stem.to(device, dtype)
    features = stem(pixels.to(device))
    weights = torch.linspace(-1, 1, features.shape[-1], device=device)
    (features.float() * weights).square().sum().backward()
    gradients = [p.grad.flatten() for name, p in stem.named_parameters() if p.grad is not None and "bias" not in name]
    return features, torch.cat([gradient / gradient.abs().max() for gradient in gradients])


def _loss(device: torch.device) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(1)
    patches, normalize = _tiles_of(4, 12, 16, BANDS), _normalizer()
    prediction = torch.randn(4, 8, 16 * BANDS, generator=generator)
    ids = torch.stack([torch.randperm(12, generator=generator)[:8] for _ in range(4)])
    counted = (torch.rand(4, 8, 16, generator=generator) < 0.9).float()
    truth, divisor = normalize.spectra(gather_tokens(patches, ids)), num_counted(counted, None)
    expected = squared_errors(
        prediction.requires_grad_(),
        lambda part: masked_targets(truth[part], True, counted[part]),
        counted / divisor.view(-1, 1, 1),
    )
    (slope,) = torch.autograd.grad(expected.sum(), prediction)
    if not usable(patches.to(device)):
        yield Row("loss in one kernel", "Triton can't be used")
        return
    patches, ids, counted, divisor = (tensor.to(device) for tensor in (patches, ids, counted, divisor))
    normalize.to(device)
    for dtype, tolerance in ((torch.float32, FP32), (torch.bfloat16, BF16)):
        x = prediction.detach().to(device, dtype).requires_grad_()
        losses = fused_errors(x, patches, ids, counted, divisor, normalize, True)
        losses.sum().backward()
        assert x.grad is not None
        yield error_row(f"loss in one kernel, {dtype}", relative_error(losses, expected), tolerance)
        yield error_row(f"loss in one kernel, {dtype}: gradient", relative_error(x.grad, slope), tolerance)


def _tiles(device: torch.device) -> Iterator[Row]:
    tiles, normalize = _tiles_of(4, BANDS, 128, 128), _normalizer()
    expected = normalize(tiles)
    crop, samples = Crop(128, (0.4, 1.0), blur=0.5), np.arange(4)
    views = crop.random_views(expected, samples, 7)
    normalize.to(device)
    for dtype, tolerance in ((torch.float32, FP32), (torch.float16, 2e-3)):
        scores = normalize(tiles.to(device), dtype)
        yield error_row(f"normalization to {dtype}", relative_error(scores, expected), tolerance)
        yield error_row(f"crops in {dtype}", relative_error(crop.random_views(scores, samples, 7), views), tolerance)


def _decoding(device: torch.device) -> Iterator[Row]:
    """Undo the prediction of tiles, which must give the CPU's values bit for bit."""
    size, count = (128, 64) if device.type == "cuda" else (16, 4)
    noise = np.random.default_rng(4).normal(0, 20, (4, BANDS, size, size))
    tiles = np.rint(2000 + 1500 * np.sin(np.linspace(0, 6, BANDS))[:, None, None] + noise).astype(np.int16)
    tiles[1, :, :3], tiles[2, 50:, 3:5], tiles[3, 7] = NODATA, 0, 32767
    for codec in (PRESETS["compact"], BoundedPredictor("noise/2")):
        planes, bands = np.empty_like(tiles), np.zeros((4, BANDS, COLUMNS), np.int32)
        encoded = [codec.encode(tile) for tile in tiles]
        for number, data in enumerate(encoded):
            bands[number] = codec.unpack(data, planes[number])
        sent = send_planes(torch.from_numpy(planes), bands, device)
        numbers = torch.from_numpy(bands).to(device)
        expected = torch.from_numpy(np.stack([codec.decode(data) for data in encoded]))
        wrong = int((restore_tiles(sent, numbers).cpu() != expected).sum())
        yield Row(f"{codec.codec_id} on the device: wrong values", str(wrong), "0", wrong == 0)
        batch = (sent.repeat(count // 4, 1, 1, 1), numbers.repeat(count // 4, 1, 1))
        rate = batch[0].nbytes / mean_seconds(partial(restore_tiles, *batch), device)
        yield Row(f"{codec.codec_id} on the device: {count} tiles", f"{rate / 1e9:.3g} GB/s of pixels")


def _tiles_of(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    tiles = torch.randint(-100, 9000, shape, dtype=torch.int16, generator=generator)
    tiles[torch.rand(shape, generator=generator) < 0.01] = NODATA
    return tiles


def _normalizer() -> Normalizer:
    return Normalizer([3000.0 + band for band in range(BANDS)], [1700.0 - band for band in range(BANDS)], 10.0)
