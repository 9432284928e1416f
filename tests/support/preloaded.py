"""Processes that run a Python script in a fork of one that has loaded torch and DeepSpeed.

A test of many processes would spend most of its time in imports: five seconds of each. The forks are processes of
their own in everything else: they have their own environment, working folder, output, signals and exit code, and they
load the project themselves.
"""

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

MODULES = (
    "torch._dynamo",
    "deepspeed",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "tensorboard.compat.proto.event_pb2",
    "numba",
    "pydantic",
    "safetensors",
    "webdataset",
)
"""None of them is the project's, and none starts a thread or reads a variable that the project sets."""


class Preloaded:
    """A running script, with the part of subprocess.Popen's interface that tests use.

    Args:
        command: ``[sys.executable, script, *arguments]``, or with ``"-m", module`` in place of the script.
        environment: all of it.
        output: file for standard output.
        error: file for standard error (default: the same).
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: str,
        environment: Mapping[str, str],
        output: IO[bytes],
        error: IO[bytes] | None = None,
    ) -> None:
        assert command[0] == sys.executable
        self.returncode: int | None = None
        self._ended, theirs = os.pipe()
        request = {"command": list(command[1:]), "cwd": cwd, "environment": dict(environment)}
        server = _server()
        data = json.dumps(request).encode()
        socket.send_fds(server, [len(data).to_bytes(4, "big")], [output.fileno(), (error or output).fileno(), theirs])
        server.sendall(data)
        os.close(theirs)
        self.pid = int.from_bytes(server.recv(4, socket.MSG_WAITALL), "big")

    def poll(self) -> int | None:
        return self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._ended, selectors.EVENT_READ)
                if selector.select(timeout):
                    self.returncode = int(os.read(self._ended, 16))
                    os.close(self._ended)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def run_preloaded(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a Python command to its end, as subprocess.run does with ``capture_output`` and ``text``."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as error:
        code = Preloaded(command, str(cwd), environment, output, error).wait(timeout)
        texts = []
        for file in (output, error):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(command, code, *texts)


Process = subprocess.Popen[bytes] | Preloaded


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair()
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno())]
    subprocess.Popen(command, cwd="/", env=environment, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL)
    theirs.close()
    return ours


def serve(link: socket.socket) -> None:
    """Fork a process for each request, and report its exit code when it has ended."""
    import importlib

    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()  # no child needs to look at them, or to copy their pages
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is link:
                    if not _fork(link, selector):
                        return
                else:
                    pid, ended = key.data
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    os.write(ended, str(code).encode())
                    os.close(ended)


def _fork(link: socket.socket, selector: selectors.BaseSelector) -> bool:
    """Answer a request with the number of a new process; returns False when the other side has gone."""
    size, files, *_ = socket.recv_fds(link, 4, 3)
    if not size:
        return False
    output, error, ended = files
    request = json.loads(link.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    pid = os.fork()
    if pid == 0:
        _run(output, error, **request)
    os.close(output)
    os.close(error)
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, ended))
    link.sendall(pid.to_bytes(4, "big"))
    return True


def _run(output: int, error: int, command: Sequence[str], cwd: str, environment: Mapping[str, str]) -> NoReturn:
    """Become the process of a command: as Python would have started it, but for what is loaded."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(error, 2)
    os.closerange(3, 1024)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    is_module = command[0] == "-m"
    sys.argv = list(command[is_module:])
    sys.path[0] = cwd if is_module else str(Path(command[0]).parent)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    code = 1
    try:
        if is_module:
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
