"""Setup and exit of a rank: threads, console, rendezvous defaults, one-line errors, and exit codes."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from launch.command import fail
from launch.ranks import set_rendezvous
from pretrain.resilience import flight_recorder
from pretrain.resilience.signals import STOPPED
from pretrain.resilience.watchdog import Watchdog
from shards.errors import ForgeError
from shards.files.processes import rank_name
from shards.files.system_errors import MACHINE, error_text, remedy


class _Console(io.FileIO):
    """Standard output or error whose writes never fail: a full disk or a closed terminal must not end a run."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def forgive_console() -> None:
    """Keep failed console writes, from any library, from ending this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start
            setattr(sys, name, open(os.devnull, "w"))
            continue
        with suppress(OSError, ValueError, AttributeError):  # closed, or replaced by an object that is not a file
            console = io.BufferedWriter(_Console(stream.fileno(), "wb", closefd=False))
            options = {"errors": stream.errors, "line_buffering": True}
            setattr(sys, name, io.TextIOWrapper(console, encoding=stream.encoding, **options))


def prepare_environment(threads: int, folder: Path | None = None) -> None:
    """Set variables that torch needs before loading: threads, memory, matplotlib's backend, and the rendezvous.

    Args:
        folder: run folder, for the collectives of a run that hangs.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # launchers differ: torchrun sets 1, deepspeed nothing
    os.environ.setdefault("MPLBACKEND", "Agg")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name, which torch prefers where both are set
        # tensors of changing sizes (gathered weights, crops) would leave gaps in CUDA's memory
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if folder is not None:
        flight_recorder.set_environment(folder)
    set_rendezvous()


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
    """Exit immediately after flushing streams: gloo's threads sometimes abort an ordinary interpreter exit."""
    import torch.distributed as dist

    if dist.is_initialized():
        with suppress(RuntimeError):  # a rank that has exited by now was done
            dist.barrier()
        if dist.get_backend() == "nccl":  # destroying gloo's groups aborts about once in a hundred times
            dist.destroy_process_group()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a log file on a full disk
            stream.flush()
    os._exit(code)


@contextmanager
def one_line_errors(watchdog: Watchdog | None = None) -> Iterator[None]:
    """End this process with one line for errors that a user can fix; others keep their traceback.

    Args:
        watchdog: writes the failure to the run's status and to the other ranks before this process ends.
    """
    import torch

    try:
        yield
    except ForgeError as error:
        if error.everywhere:
            if watchdog is not None:
                watchdog.leave_run("failed", str(error))
            fail(error)
        _abort(str(error), error.exit_code, watchdog)
    except (torch.OutOfMemoryError, MemoryError) as error:
        _abort(_out_of_memory(error), 1, watchdog)
    except OSError as error:
        if error.errno not in MACHINE:
            _report_defect(watchdog, error)
            raise
        path = error.filename or (watchdog.folder if watchdog is not None else ".")
        advice = f"{remedy(error, path)} and run the command again"
        _abort(f"{path}: {error_text(error)}: what is saved is intact; {advice}", 1, watchdog)
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # torch's message on a CPU
            _abort(_out_of_memory(error), 1, watchdog)
        if not _is_lost_peer(error):
            _report_defect(watchdog, error)
            raise
        time.sleep(1)  # the reason may still be on its way to this rank's watchdog
        if watchdog is not None and watchdog.ends_as_asked:
            watchdog.leave_run("interrupted", "stopped before the first step: nothing to save")
            os._exit(STOPPED)
        text, code = _lost_peer(error)
        _abort(text + ("" if watchdog is None else watchdog.oom_clause()), code, watchdog)
    except BaseException as error:  # includes a library's sys.exit
        _report_defect(watchdog, error)
        raise


def _out_of_memory(error: Exception) -> str:
    reason = (str(error) or "out of memory").splitlines()[0].rstrip(".")
    return f"{reason}. Lower train.micro_batch, or set engine.activation_checkpointing=blocks"


def _lost_peer(error: RuntimeError) -> tuple[str, int]:
    """Return the line and the exit code for a failed collective."""
    if "Unable to find address for" in str(error):  # gloo's
        name = os.environ.get("GLOO_SOCKET_IFNAME")
        return f"GLOO_SOCKET_IFNAME={name}: no such interface on this host; `ip address` lists them", 2
    if "EADDRINUSE" in str(error):
        port = os.environ.get("MASTER_PORT")
        return f"port {port} is in use on this host, maybe by another run: pass --master_port, or set MASTER_PORT", 2
    reason = str(error).splitlines()[0].split(". This is typically")[0]  # gloo appends several sentences
    return f"lost another rank, or never connected to it: {reason}; see its output", 1


def _is_lost_peer(error: RuntimeError) -> bool:
    """Return whether a collective failed because a process of the group has ended."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error) or "onnection" in str(error)


def _report_defect(watchdog: Watchdog | None, error: BaseException) -> None:
    """Report an unexpected error before it ends this process with a traceback."""
    if watchdog is not None:
        watchdog.report_failure(f"{rank_name(os.environ.get('RANK', '0'))}: {type(error).__name__}: {error}")


def _abort(text: str, code: int, watchdog: Watchdog | None) -> NoReturn:
    """End this rank immediately, printing one line with its number and the reason; the launcher ends the others."""
    if watchdog is not None:
        watchdog.report_failure(f"{rank_name(os.environ['RANK'])}: {text}")
    with suppress(OSError):
        print(f"error: {rank_name(os.environ['RANK'])}: {text}", file=sys.stderr, flush=True)
    os._exit(code)
