"""Check a cluster before queuing a run: `python -m launch.doctor --config configs/pretrain/... [key.sub=value ...]`.

Run it alone, or under the run's launcher: `torchrun --nproc_per_node 2 -m launch.doctor --config ...`,
`srun python -m launch.doctor --config ...`. Exit codes: 0 nothing red, 1 something red, 2 misuse.
"""

import os
import pkgutil
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from launch import runtime
from launch.command import command_parser, is_main_process, parse_command
from launch.doctor.limit import time_limit
from launch.doctor.table import Printer, Row, State, summary
from pretrain.config import PretrainConfig
from shards.cli import Parser
from shards.files.processes import rank_name

if TYPE_CHECKING:
    from launch.doctor.cluster import Cluster

CHECKS = {
    "versions": "launch.doctor.versions:check",
    "launcher": "launch.doctor.machine:check_launcher",
    "GPUs": "launch.doctor.machine:check_gpus",
    "attention": "launch.doctor.attention:check",
    "compiler": "launch.doctor.compiler:check",
    "DeepSpeed config": "launch.doctor.deepspeed_config:check",
    "clocks": "launch.doctor.network:check_clocks",
    "bandwidth": "launch.doctor.network:check_bandwidth",
    "file system": "launch.doctor.disk:check_file_system",
    "room": "launch.doctor.disk:check_room",
    "shards": "launch.doctor.data:check_shards",
    "staging": "launch.doctor.data:check_staging",
    "loader": "launch.doctor.loader:check",
}
"""Rows of the table and their checks; each is imported separately, so a broken library fails only one row."""

START_LIMIT_S, CHECK_LIMIT_S, END_LIMIT_S = 120.0, 180.0, 30.0
"""Time limits of the rendezvous, a check and the exit; on a healthy cluster the longest check takes ten seconds."""


def main(argv: list[str] | None = None) -> None:
    """Run all checks, print the table and end the process."""
    config, options = parse_command(build_parser(), argv, PretrainConfig)
    runtime.prepare_environment(config.run.threads)
    show = Printer(is_main_process(), getattr(options, "verbose", False))
    show.line(f"{'check':<19} {'state':<7} found")
    cluster = _gather_ranks(config, show)
    states: list[State] = ["green"]  # state of the ranks' row
    for name, module, arguments in check_rows(config):
        with time_limit(CHECK_LIMIT_S, lambda name=name: _report_late(cluster, name, show)):  # type: ignore[misc]
            row = examine(cluster, module, *arguments)
        show(name, row)
        states.append(row.state)
    show.line(summary(states))
    _end(1 if "red" in states else 0)


def build_parser() -> Parser:
    """Return the parser of the command; --verbose shows all versions and the full DeepSpeed config."""
    return command_parser(
        "Check a cluster before the queue, alone or under the launcher of the run.", "python -m launch.doctor"
    )


def check_rows(config: PretrainConfig) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Yield the name of each row, its check, and the check's arguments besides the cluster: a row for every source."""
    for name, module in CHECKS.items():
        if name == "shards" and config.data.sources:
            yield from ((f"shards {source.label}", module, (source,)) for source in config.data.each)
        else:
            yield name, module, ()


def examine(cluster: "Cluster", module: str, *arguments: Any) -> Row:
    """Run a check and return its row; an unexpected error gives a red row."""
    from launch.doctor.cluster import one_line

    try:
        row: Row = pkgutil.resolve_name(module)(cluster, *arguments)
    except Exception as error:  # any: one failing check must not prevent the others
        return Row("red", one_line(error), "no error that this check looks for: fix what the line names")
    return row


def _gather_ranks(config: PretrainConfig, show: Printer) -> "Cluster":
    """Start the process group, or end the process, since no check could run without it."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    name, size = rank_name(os.environ["RANK"]), os.environ["WORLD_SIZE"]
    fix = "check for ranks that didn't start, then MASTER_ADDR, MASTER_PORT, the firewall and NCCL_SOCKET_IFNAME"

    def report() -> None:
        problem = f"{name} of {size}: not all ranks answered within {START_LIMIT_S:.0f} s at {address}"
        show("ranks", Row("red", problem, fix))
        print(f"error: {problem}", file=sys.stderr, flush=True)

    with time_limit(START_LIMIT_S, report):
        try:
            runtime.prepare_torch(config.run.threads)
            from launch.doctor.cluster import Cluster
            from pretrain.engine.zero import init_distributed

            init_distributed()
            cluster = Cluster(config)
        except Exception as error:  # any: torch, DeepSpeed, CUDA or the network
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            show("ranks", Row("red", f"{name} of {size} at {address}: {reason}", fix))
            print(f"error: {name}: {reason}", file=sys.stderr, flush=True)
            os._exit(1)
    hosts = len(cluster.first_ranks)
    show("ranks", Row("green", f"{cluster.size} on {hosts} host{'s' * (hosts > 1)}, at {address}"))
    return cluster


def _end(code: int) -> NoReturn:
    """End together with the other ranks, or without them if one has died."""
    with time_limit(END_LIMIT_S, lambda: None):
        try:
            runtime.end_process(code)
        except Exception:  # raised by the barrier; the rows give the reason
            os._exit(1)


def _report_late(cluster: "Cluster", name: str, show: Printer) -> None:
    """Report that a check did not end in time."""
    cluster.report_late(name)
    time.sleep(1.0)  # lets the late rank report first: a launcher ends all ranks as soon as one ends
    fix = "stderr names late ranks; if there are none, the network between the ranks hangs"
    show(name, Row("red", f"not all ranks finished within {CHECK_LIMIT_S:.0f} s", fix))
    if cluster.rank:
        time.sleep(2.0)


if __name__ == "__main__":
    main()
