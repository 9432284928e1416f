"""Check this machine's GPU: one table, and JSON beside it.

Every group of checks runs in a process of its own within its share of the time, so that one that hangs or crashes costs
its own rows alone. The shares add up to less than 11 minutes. No network is needed. `--device cpu` rehearses the same
checks, in small, on a machine without a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from shards.cli import Parser, run_command
from shards.errors import ForgeError
from tools.gpu_check.row import Row

GROUPS = {"hardware": 40, "numerics": 60, "training": 170, "commands": 130, "speed": 240}
"""Seconds that each group may take on a GPU."""

REHEARSAL = 8  # times as long on a CPU


def main(argv: list[str] | None = None) -> int:
    """Check, print and return 1 if a row doesn't hold."""
    parser = Parser(prog="python -m tools.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--groups", default=",".join(GROUPS), help="with commas (default: all)")
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="default: %(default)s")
    parser.add_argument("--child", choices=GROUPS, help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)
    return run_command(parser, argv)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.child:
        _check_group(arguments.child, arguments.device, arguments.json)
        return 0
    groups = arguments.groups.split(",")
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        raise ForgeError(f"--groups {unknown[0]}: choose from {', '.join(GROUPS)}")
    _require(arguments.device)
    begin, rows = time.monotonic(), list[dict]()
    print(f"{'check':<58} {'':<4} figure (expected)")
    for group in groups:
        for row in _rows(group, arguments.device):
            _print(row)
            rows.append({"group": group} | asdict(row))
            arguments.json.write_text(
                json.dumps({"device": _device_name(arguments.device), "rows": rows}, indent=1) + "\n"
            )
    failed = sum(row["ok"] is False for row in rows)
    minutes = (time.monotonic() - begin) / 60
    print(f"{len(rows)} rows, {failed} that don't hold, in {minutes:.1f} min; {arguments.json}")
    return int(failed > 0)


def _require(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ForgeError("torch sees no GPU: run it on a machine with one, or rehearse it with --device cpu")


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def _rows(group: str, device: str) -> Iterator[Row]:
    """Yield a group's rows as its process writes them, and a last one if it didn't end well."""
    seconds = _seconds(group, device)
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "rows.jsonl", Path(folder) / "log.txt"
        path.touch()
        command = [sys.executable, "-m", "tools.gpu_check", "--child", group, "--device", device, "--json", str(path)]
        with log.open("w") as output, path.open() as lines:
            # a session of its own: whatever the group has started ends with it
            child = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            end = time.monotonic() + seconds
            while child.poll() is None and time.monotonic() < end:
                yield from (Row(**json.loads(line)) for line in lines)
                time.sleep(0.1)
            code = child.poll()
            if code is None:
                os.killpg(child.pid, 9)
            yield from (Row(**json.loads(line)) for line in lines if line.endswith("\n"))
        if code != 0:
            ending = f"not done after {seconds} s" if code is None else f"exit code {code}"
            last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
            yield Row(f"{group}: all checks", f"{ending}: {last}", "done", False)


def _seconds(group: str, device: str) -> int:
    return GROUPS[group] * (1 if device == "cuda" else REHEARSAL)


def _check_group(group: str, device: str, path: Path) -> None:
    """Write a group's rows to a file, a JSON line each."""
    import torch

    checks = import_module(f"tools.gpu_check.{group}").checks
    with path.open("a") as lines:
        for row in checks(torch.device(device), 0.9 * _seconds(group, device)):
            lines.write(json.dumps(asdict(row)) + "\n")
            lines.flush()


def _print(row: Row) -> None:
    mark = {True: "ok", False: "FAIL", None: ""}[row.ok]
    expected = f" ({row.expected})" if row.expected else ""
    print(f"{row.check:<58} {mark:<4} {row.figure}{expected}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
