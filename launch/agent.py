"""The task on each node of a Slurm job with torchrun or deepspeed as its launcher: `agent.py torchrun|deepspeed ARGS`.

srun's signals reach this process but, on some clusters, none of its children. torchrun alone would end with a
traceback and exit code 1, and the deepspeed command would die and leave its ranks behind for Slurm to kill. The agent
passes the signal to the ranks, gives them time to save, and returns their exit code.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

# Run by path, Python puts launch/ first on sys.path, where the name "pretrain" would be another file.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pretrain.resilience.signals import STOPPED, StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that ask a run to stop."""
HEARTBEATS = 120
"""Heartbeats of 5 s that an agent may miss. An agent compares the times of the others' heartbeats with its own clock:
with torchrun's default of 3, agents whose clocks differ by 15 s take each other for dead."""


def main(argv: list[str]) -> int:
    """Start the node's ranks, wait for them, and return the exit code."""
    name, *arguments = argv
    return {"torchrun": run_torchrun, "deepspeed": run_deepspeed}[name](arguments)


def run_torchrun(arguments: list[str]) -> int:
    """Run a torchrun agent in this process.

    The first signal sends SIGUSR1 to the ranks and waits for them, for at most --shutdown-timeout. torchrun's own
    handlers would stop waiting at the second signal.
    """
    # In a store owned by the agents, restarted ranks would find keys of the previous ranks.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if len(signals) == 1:
            raise SignalException(signal.Signals(number).name, sigval=signal.SIGUSR1)

    store = None
    try:
        for number in SIGNALS:
            signal.signal(number, stop)
        options = ["--signals-to-handle=SIGHUP"]  # keeps torchrun from handling the signals above
        endpoint = next((word.partition("=")[2] for word in arguments if word.startswith("--rdzv-endpoint=")), None)
        if endpoint is not None:
            is_host = os.environ["SLURM_NODEID"] == "0"
            settings = f"is_host={int(is_host)},keep_alive_max_attempt={HEARTBEATS}"
            options += [f"--local-addr={_address_towards(endpoint)}", f"--rdzv-conf={settings}"]
            store = _hold_store(endpoint) if is_host else None
        run.run(run.parse_args([*options, *arguments]))
    except SignalException:
        return STOPPED  # the ranks have ended; whether they saved is in status.json
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except (RendezvousError, DistError) as error:
        cause = error.__cause__ or error
        reason = str(cause) or type(cause).__name__
        print(f"error: torchrun on {socket.gethostname()} can't meet the other nodes: {reason}", file=sys.stderr)
        return 1
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # sent by srun when a task ends before the others
        if store is not None:
            time.sleep(2)  # lets the other agents disconnect
    return 0


def _hold_store(endpoint: str) -> object:
    """Open the agents' rendezvous store, and keep it open after the first node's agent has finished."""
    from torch.distributed import TCPStore

    host, _, port = endpoint.rpartition(":")
    return TCPStore(host, int(port), is_master=True, wait_for_workers=False, multi_tenant=True)


def run_deepspeed(arguments: list[str]) -> int:
    """Run the deepspeed command of this node; signals bypass it and its launcher, which would not survive them."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--node_rank", os.environ["SLURM_NODEID"]]
    signals: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: signals.append(number))
    child = subprocess.Popen([*command, *arguments], preexec_fn=_ignore_signals)
    while child.poll() is None:
        if signals:  # repeatedly: a rank that has just started has no handler yet
            _signal_ranks(child.pid)
        time.sleep(0.5)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _ignore_signals() -> None:
    """Ignore signals in the child and, by inheritance, in its children; ranks set their own handlers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _signal_ranks(runner: int) -> None:
    """Ask the children of the runner's launcher to stop."""
    import psutil

    with suppress(psutil.Error):
        for launcher in psutil.Process(runner).children():
            for rank in launcher.children():
                with suppress(psutil.Error):
                    rank.send_signal(signal.SIGUSR1)


def _address_towards(endpoint: str) -> str:
    """Return this node's address on the network to ``host:port``; node names do not resolve everywhere."""
    host, _, port = endpoint.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing
        return str(probe.getsockname()[0])


if __name__ == "__main__":
    StopRequest()  # before the launcher starts there is nothing to save: a signal ends this process with code 75
    sys.exit(main(sys.argv[1:]))
