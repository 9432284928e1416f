"""Compile every Triton kernel for GPUs that needn't be there: registers, spills and shared memory.

Each kernel is compiled as training launches it, for all precisions, by the compiler that Triton's wheel carries. A
kernel that spills registers, or needs more shared memory than a GPU has, is an error. Speed is not predicted.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.kernels.launching import Launch, recording
from shards.cli import Parser, run_command
from shards.errors import ForgeError

SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a program can have, by compute capability (CUDA C++ Programming Guide)."""

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8"}
TYPES |= {torch.int16: "i16", torch.int32: "i32", torch.int64: "i64"}

PRECISIONS = ("bf16", "fp16", "fp32")
BANDS, PIXELS = 202, 16


@dataclass(frozen=True)
class Compiled:
    """A kernel for one GPU.

    Attributes:
        kernel: its name.
        variant: what it was compiled for.
        capability: compute capability of the GPU, 80 for 8.0.
        registers: for each thread.
        spills: bytes that each thread stores to memory for want of registers.
        shared: bytes of shared memory for each program.
        threads: of a program.
    """

    kernel: str
    variant: str
    capability: int
    registers: int
    spills: int
    shared: int
    threads: int


def launches() -> Iterator[tuple[str, list[Launch]]]:
    """Yield variants of kernels and what they are launched with: tensors without memory, of the shapes of training."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with recording() as recorded, torch.device("meta"):
            _pixel_kernels(dtype)
            if dtype == torch.float32:
                _tile_kernels()
            if dtype != torch.float32:
                _block_kernels(dtype)
                _stem_kernels(dtype)
                _wave_kernels(dtype)
        yield TYPES[dtype], recorded


def _pixel_kernels(dtype: torch.dtype) -> None:
    from pretrain.kernels.normalize import launch_normalize
    from pretrain.kernels.patch_loss import launch_patch_loss

    per_band, tiles = torch.empty(BANDS), torch.empty(2, BANDS, 128, 128, dtype=torch.int16)
    launch_normalize(tiles, per_band, per_band, 10.0, dtype)
    prediction, ids = torch.empty(2, 8, PIXELS * BANDS, dtype=dtype), torch.empty(2, 8, dtype=torch.int64)
    counted, scale = torch.empty(2, 8, PIXELS), torch.empty(2)
    tables = torch.empty(2, BANDS)
    for kind, wanted, table in (
        (torch.int16, None, per_band),
        (torch.float16, None, scale),
        (torch.int16, tables, tables),
    ):
        patches = torch.empty(2, 16, PIXELS, BANDS, dtype=kind)
        launch_patch_loss(prediction, patches, ids, counted, wanted, scale, table, table, 10.0, True)


def _tile_kernels() -> None:
    from pretrain.kernels.restore import launch_restore
    from shards.format.planes import COLUMNS

    planes, bands = torch.empty(2, BANDS, 128, 128, dtype=torch.int16), torch.empty(2, BANDS, COLUMNS)
    launch_restore(planes, bands.to(torch.int32))


def _block_kernels(dtype: torch.dtype) -> None:
    from pretrain.kernels.bias_sums import launch_gelu_backward, launch_pack
    from pretrain.kernels.residual_norm import launch_add_norm, launch_norm_backward

    hidden, heads = torch.empty(2, 103, 6144, dtype=dtype), torch.empty(2, 103, 16, 88, dtype=dtype)
    launch_gelu_backward(hidden, hidden)
    launch_pack(heads, heads, heads)
    x, scale = torch.empty(2, 103, 1408, dtype=dtype), torch.empty(1408, dtype=dtype)
    _, _, moments = launch_add_norm(x, x, scale, scale, 1e-6)
    launch_add_norm(x, None, scale, scale, 1e-6)
    launch_norm_backward(x, x, x, scale, moments)


def _stem_kernels(dtype: torch.dtype) -> None:
    from pretrain.kernels import stem, stem_backward, stem_moments, stem_weights

    def rows(*shape: int) -> Tensor:
        return torch.empty(2, *shape)

    pixels, table, weight2 = rows(100, BANDS).to(dtype), rows(64, 256).to(dtype), torch.empty(256, 64, dtype=dtype)
    stem_moments.launch_window_moments(pixels, 8)
    y2, _ = stem.launch_second_layer(pixels, table, weight2, torch.empty(64), 8)
    norm2, norm3, weight3 = rows(4, 64), rows(4, 128), torch.empty(5 * 64, 128, dtype=dtype)
    y3, _ = stem.launch_third_layer(y2, norm2, weight3, torch.empty(128), 2)
    features = stem.launch_mean_features(y3, norm3)
    stem_backward.launch_third_sums(features, y3, norm3)
    third = (features, y3, norm3, rows(2, 128))
    d2, _ = stem_backward.launch_second_gradient(*third, weight3, y2, norm2)
    stem_weights.launch_third_weights(*third, y2, norm2)
    second = (d2, y2, norm2, rows(2, 64))
    stem_weights.launch_second_weights(pixels, table, *second)
    stem_weights.launch_first_sums(pixels, table, weight2, *second)


def _wave_kernels(dtype: torch.dtype) -> None:
    from pretrain.kernels import wave

    scale, weight, matrix = torch.empty(128), torch.empty(128, 128), torch.empty(2, BANDS, 128, dtype=dtype)
    half = dtype == torch.float16  # resampled crops are fp16 on GPUs, others become fp32
    pixels = torch.empty(2, 100, BANDS, dtype=torch.float16 if half else torch.float32)
    features, products = wave.launch_features(pixels, matrix, scale, scale, weight, scale, 1e-6)
    d_products, _ = wave.launch_products_gradient(features, products, scale, scale, weight, 1e-6)
    wave.launch_matrix_gradient(pixels, d_products)


def compile_for(launch: Launch, variant: str, capability: int) -> Compiled:
    """Compile a kernel for a compute capability, without a GPU.

    Raises:
        ForgeError: it spills, needs more shared memory than the GPU has, or fuses operations that it must not.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    names = launch.kernel.arg_names
    arguments = dict(zip(names, launch.arguments, strict=False))
    signature = {name: _type(arguments[name]) if name in arguments else "constexpr" for name in names}
    aligned = {
        (number,): [["tt.divisibility", 16]] for number, name in enumerate(names) if signature[name].startswith("*")
    }
    constants = {name: value for name, value in launch.constants.items() if name in names}
    source = triton.compiler.ASTSource(
        launch.kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
    )
    options = {name: value for name, value in launch.constants.items() if name not in names}
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": launch.num_warps} | options
    )
    if not options.get("enable_fp_fusion", True) and "fma." in compiled.asm["ptx"]:
        raise ForgeError(f"kernel {launch.kernel.__name__.strip('_')}: it rounds products and sums at once")
    registers, spills = _usage(compiled.asm["ptx"], capability)
    threads = 32 * launch.num_warps
    result = Compiled(
        launch.kernel.__name__.strip("_"), variant, capability, registers, spills, compiled.metadata.shared, threads
    )
    if spills or result.shared > SHARED[capability]:
        raise ForgeError(
            f"kernel {result.kernel}, {variant}, sm_{capability}: {spills} bytes of spilled registers, "
            f"{result.shared} of {SHARED[capability]} bytes of shared memory: use smaller blocks"
        )
    return result


def _types(launch: Launch) -> tuple[str, ...]:
    return tuple(map(_type, launch.arguments))


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _usage(ptx: str, capability: int) -> tuple[int, int]:
    """Return registers of a thread and bytes that it spills, by ptxas's own report."""
    from triton import knobs

    target = re.search(r"\.target (\w+)", ptx)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [knobs.nvidia.ptxas.path, "-v", "--gpu-name", target[1] if target else f"sm_{capability}", file.name]
        report = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True, check=True).stderr
    spills = sum(int(size) for size in re.findall(r"(\d+) bytes spill", report))
    return int(re.findall(r"Used (\d+) registers", report)[-1]), spills


def compile_all(capabilities: Sequence[int], precisions: Container[str] = PRECISIONS) -> Iterator[Compiled]:
    """Compile kernels as training launches them.

    Args:
        capabilities: compute capabilities of GPUs.
        precisions: of ``PRECISIONS``.

    Raises:
        ForgeError: Triton isn't installed or interprets, or a kernel needs too much of a GPU.
    """
    if find_spec("triton") is None:
        raise ForgeError("Triton isn't installed: pip install triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ForgeError("TRITON_INTERPRET=1 interprets kernels instead of compiling them: unset it")
    for variant, recorded in launches():
        if variant not in precisions:
            continue
        distinct = {(launch.kernel.__name__, str(launch.constants), _types(launch)): launch for launch in recorded}
        for launch in distinct.values():
            for capability in capabilities:
                yield compile_for(launch, variant, capability)


def main(argv: list[str] | None = None) -> int:
    """Compile, print and return the exit code."""
    parser = Parser(prog="python -m tools.kernel_report", description=__doc__)
    parser.add_argument("--capabilities", default="80,90", help="with commas, of 80 and 90 (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.set_defaults(run=_report)
    return run_command(parser, argv)


def _report(arguments: argparse.Namespace) -> None:
    try:
        capabilities = [int(text) for text in arguments.capabilities.split(",")]
    except ValueError:
        capabilities = []
    if not capabilities or not set(capabilities) <= set(SHARED):
        raise ForgeError(f"--capabilities {arguments.capabilities}: choose from 80 and 90, with commas")
    print(f"{'kernel':<24} {'variant':<16} {'GPU':<6} threads registers spills shared bytes")
    rows = []
    for row in compile_all(capabilities):
        rows.append(asdict(row))
        print(
            f"{row.kernel:<24} {row.variant:<16} sm_{row.capability:<3} {row.threads:7} {row.registers:9} "
            f"{row.spills:6} {row.shared:12}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
