"""What is installed, and the rates that the device reaches at best."""

import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from pretrain.metrics.flops import peak_flops
from pretrain.models.attention import xformers_problem
from tools.gpu_check.row import Row

PACKAGES = ("deepspeed", "xformers", "triton", "numpy", "zarr", "numcodecs", "webdataset")


def checks(device: torch.device, seconds: float) -> Iterator[Row]:
    """Yield versions, and the rates of a large matrix product and of a copy."""
    yield Row("torch", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    yield Row("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory, capability = properties.total_memory / 2**30, f"{properties.major}.{properties.minor}"
        yield Row("device", f"{properties.name}, {memory:.1f} GiB, compute capability {capability}")
        yield Row("NCCL", ".".join(str(number) for number in torch.cuda.nccl.version()))
        problem = xformers_problem()
        yield Row("xformers' kernels", problem or "load", "load; else torch's attention is used", problem is None)
    size = 8192 if device.type == "cuda" else 512
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        x = torch.randn(size, size, device=device, dtype=dtype)
        rate = 2 * size**3 / mean_seconds(lambda x=x: x @ x, device)  # type: ignore[misc]
        peak = peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
        of_peak = "" if peak is None else f", {rate / peak:.0%} of the data sheet"
        expected = "" if peak is None else ">= 50 %"
        ok = None if peak is None else rate / peak >= 0.5
        yield Row(f"{precision} product of {size} x {size}", f"{rate / 1e12:.1f} TFLOP/s{of_peak}", expected, ok)
    values = torch.empty(2**29 if device.type == "cuda" else 2**22, dtype=torch.float32, device=device)
    target = torch.empty_like(values)
    rate = 2 * values.nbytes / mean_seconds(lambda: target.copy_(values), device)
    yield Row("copy within memory", f"{rate / 1e9:.0f} GB/s read and written")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def mean_seconds(operation: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Return the seconds of one call, after two to warm up."""
    for _ in range(2):
        operation()
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        operation()
    synchronize(device)
    return (time.perf_counter() - begin) / repeats


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
