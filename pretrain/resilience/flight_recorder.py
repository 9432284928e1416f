"""Torch's flight recorder: the last collectives of each rank, which a hung run leaves in its folder.

`torchfrtrace --prefix collectives-rank- RUN` compares the files of all ranks and names the first collective that they
don't share.
"""

import os
from importlib import metadata
from pathlib import Path

from packaging.version import Version

PREFIX = "collectives-rank-"
OPERATIONS = 2000
"""Collectives that are kept for each rank."""


def set_environment(folder: Path) -> None:
    """Set variables that torch reads when the first process group is created; those of the user take precedence.

    NCCL writes the files itself if a collective fails.
    """
    _set("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", str(OPERATIONS))
    _set("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str((folder / PREFIX).absolute()))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def _set(name: str, older: str, value: str) -> None:
    """Set a variable unless it is set by one of its names; the older one only for a torch that may not know the newer.

    Torch 2.13 warns of the older ones, on every rank.
    """
    if name in os.environ or older in os.environ:
        return
    os.environ[name] = value
    if Version(metadata.version("torch")) < Version("2.13"):
        os.environ[older] = value


def dump(folder: Path, rank: int) -> None:
    """Write this rank's collectives; without a recorder in this torch, nothing.

    Raises:
        OSError, RuntimeError: it can't be written or read.
    """
    import torch.distributed

    c10d = getattr(torch._C, "_distributed_c10d", None)
    read = getattr(c10d, "_dump_nccl_trace", None) or getattr(c10d, "_dump_fr_trace", None)
    if read is not None and torch.distributed.is_initialized():
        (folder / f"{PREFIX}{rank}").write_bytes(read(True, True, False))
