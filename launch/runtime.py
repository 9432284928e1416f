"""The process a launcher gives us: threads, signals, rendezvous defaults, and a clean end."""

import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

from shards.errors import ForgeError

STOPPED = 75
"""Exit code of a run that was asked to stop and has saved: start the same command again (EX_TEMPFAIL)."""


class StopFlag:
    """Set by SIGTERM, SIGUSR1 or SIGINT; the loop looks at it after every step and saves."""

    def __init__(self) -> None:
        self.is_set = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True

    def __call__(self) -> bool:
        return self.is_set


def prepare_environment(threads: int) -> None:
    """Set what must be set before torch loads: threads, accelerator, a process group of one where no launcher is."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # launchers differ: torchrun sets 1, deepspeed nothing
    os.environ.setdefault("MPLBACKEND", "Agg")
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(_free_port())


def prepare_torch(threads: int) -> None:
    """Quiet DeepSpeed's start-up and fix the number of threads."""
    import logging
    import warnings

    import torch

    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def end_process(code: int) -> NoReturn:
    """Leave at once, with everything flushed: gloo's threads now and then abort an ordinary interpreter exit."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        if dist.get_backend() == "nccl":  # to destroy gloo's groups is what aborts, one time in a hundred
            dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def abort(error: ForgeError) -> NoReturn:
    """End this rank at once, saying which it is and why."""
    print(f"error: rank {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
