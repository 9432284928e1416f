"""Runs without Slurm: sequentially on this machine, with a table of their outcomes."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from launch.jobs import ROOT
from launch.launchers import check_launcher
from launch.sweeps import Run, processes_per_node
from pretrain.resilience.signals import STOPPED
from shards.errors import ConfigError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def check_local(arguments: argparse.Namespace) -> None:
    """Raise ConfigError, in one line, for options that need Slurm."""
    if arguments.nodes > 1:
        raise ConfigError(f"--nodes {arguments.nodes}: --local runs only on this machine; remove --nodes")
    if arguments.launcher not in ("srun", "torchrun"):
        raise ConfigError(f"--launcher {arguments.launcher}: --local starts ranks with torchrun; remove --launcher")
    for name in ("setup", "stage"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name}: only works in Slurm's job scripts; remove it with --local")
    check_launcher(arguments, str(ROOT), str(Path.cwd()))


def commands(arguments: argparse.Namespace, runs: list[Run]) -> list[list[str]]:
    """Return the command of each run."""
    processes = processes_per_node(arguments)
    start = [sys.executable]
    if processes > 1 or arguments.launcher == "torchrun":
        start += [str(ROOT / "launch" / "agent.py"), "torchrun", "--standalone", f"--nproc-per-node={processes}"]
        start.append(f"--max-restarts={arguments.max_restarts}")
    return [
        [
            *start,
            str(ROOT / "launch" / f"{run.program}.py"),
            *("--config", str(run.file), *arguments.overrides, *run.overrides, f"run.dir={run.folder}"),
        ]
        for run in runs
    ]


def run_all(arguments: argparse.Namespace, runs: list[Run], report: list[str] | None) -> int:
    """Run all runs sequentially; a signal stops the remaining ones, a failed run does not.

    Args:
        report: command that writes a page of all results; executed if at least one run is complete.

    Returns:
        0 if all are complete, 75 if a signal stopped them, else 1.
    """
    queue = _Queue()
    codes: list[int | None] = []
    for number, (run, command) in enumerate(zip(runs, commands(arguments, runs), strict=True), 1):
        if not queue.stopped:
            print(f"\n[{number}/{len(runs)}] {run.folder}", flush=True)
        codes.append(None if queue.stopped else queue.run(command))
    print()
    print(table(runs, codes))
    if report and 0 in codes and not queue.stopped:
        codes.append(queue.run(report))
    if queue.stopped or STOPPED in codes:
        print("stopped; run the same command again to continue")
        return STOPPED
    return 0 if not any(codes) else 1


class _Queue:
    """Runs commands; a signal is passed to the running command, and no further command starts."""

    def __init__(self) -> None:
        self.stopped = False
        self._child: subprocess.Popen | None = None
        for number in SIGNALS:
            signal.signal(number, self._stop)

    def run(self, command: list[str]) -> int:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
        code = self._child.wait()
        return code if code >= 0 else 128 - code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)


def table(runs: list[Run], codes: list[int | None]) -> str:
    """Return a table with one line per run: outcome, exit code, last step and loss."""
    rows = [("run", "ended", "code", "step", "loss")]
    for run, code in zip(runs, codes, strict=True):
        status = _last(run.folder / "status.json", "status")
        step = f"{status.get('step', '-')}/{status.get('steps', '-')}" if status else "-"
        loss = _last(run.folder / "metrics.jsonl", "loss").get("loss")
        ended = (
            "not begun" if code is None else "failed" if code not in (0, STOPPED) else status.get("status", "failed")
        )
        shown = "-" if not isinstance(loss, (int, float)) else f"{loss:.4f}"
        rows.append((str(run.folder), str(ended), "-" if code is None else str(code), step, shown))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _last(path: Path, key: str) -> dict:
    """Return the last JSON line that has a key; empty if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and key in record:
            return record
    return {}
