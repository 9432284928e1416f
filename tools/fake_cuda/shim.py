"""Gives the CPU build of PyTorch a device "cuda" for tensors without storage. Load it before torch is imported.

`native.cpp` registers what a CUDA build registers: a device guard, hooks, and the choice of the attention kernel.
Shapes, dtypes, devices, dispatch and autograd are those of a CUDA build from then on; values don't exist.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from shards.errors import ForgeError

SOURCE = Path(__file__).with_name("native.cpp")


def missing() -> str | None:
    """Return why the shim can't be built here, or None."""
    if sys.platform != "linux":
        return f"the fake CUDA device needs Linux, this is {sys.platform}"
    if shutil.which("g++") is None:
        return "the fake CUDA device is compiled with g++, which is not installed: apt install g++"
    return None


def load() -> None:
    """Compile the shim unless it is in the cache, and load it.

    Raises:
        ForgeError: torch is imported already, g++ is missing, or the shim does not compile with this torch.
    """
    if "torch" in sys.modules:
        raise ForgeError("the fake CUDA device must be loaded before torch is imported: use a fresh process")
    library = _library()
    if not library.exists():
        _compile(library)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _library() -> Path:
    """Return the compiled shim's path; its name changes with everything that it is compiled from."""
    folder = Path(os.environ.get("SPECTRALFORGE_CACHE") or Path.home() / ".cache" / "spectralforge")
    text = f"{version('torch')} {sys.version_info[:2]} {SOURCE.read_text()}"
    return folder / f"fake_cuda-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"


def _compile(library: Path) -> None:
    reason = missing()
    if reason:
        raise ForgeError(reason)
    library.parent.mkdir(parents=True, exist_ok=True)
    include, built = _torch() / "include", library.with_suffix(f".{os.getpid()}")
    command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", "-w", f"-I{include}"]
    command += [f"-I{include}/torch/csrc/api/include", str(SOURCE), "-o", str(built)]
    command += [f"-L{_torch() / 'lib'}", "-lc10", "-ltorch_cpu"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        first = next((line for line in result.stderr.splitlines() if "error" in line), "no message")
        raise ForgeError(f"{SOURCE.name} does not compile with torch {version('torch')}: {first}")
    built.rename(library)  # other processes see a whole file or none
