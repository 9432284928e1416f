"""Compare how long a training waits for a save: written behind it, waited for, and by torch.distributed.checkpoint.

    python -m tools.bench_checkpoint [--processes 1 2] [--depth 6] [--width 768] [--rounds 5] [--folder DIR]

A stack of transformer layers trains under ZeRO-3 with AdamW on the CPU or the GPUs. Each round saves its state (weights
and two moments, fp32) in three ways, in turns, to the same folder:

    background   the call that copies the state, and the one that finishes the save when all ranks have written
    waited       the same save, waited for: written, synced, read back, hashed, renamed
    dcp          the call of ``async_save`` on the same tensors, whose copies it keeps, too (DefaultStager)

Nothing else runs while a save is written. The time of a call is that of the slowest rank; ratios are taken within a
round. The first round, in which buffers are allocated, is not counted.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pretrain import distributed
from shards.cli import Parser, positive, run_command


@dataclass(frozen=True)
class Round:
    """Seconds that the training waits, and until the save in the background was complete."""

    background: float
    waited: float
    dcp: float
    complete: float


@dataclass(frozen=True)
class Result:
    """The rounds of one number of processes.

    Attributes:
        megabytes: of the whole state.
    """

    processes: int
    megabytes: float
    rounds: list[Round]

    def ratios(self, other: str) -> list[float]:
        """Return the background save's time relative to another's in each round, sorted."""
        return sorted(one.background / getattr(one, other) for one in self.rounds)


def run_rank(rank: int, processes: int, port: int, options: argparse.Namespace, folder: Path) -> None:
    """Save in all ways, as one of some processes; rank 0 writes ``folder/result.json``."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    from launch import runtime

    runtime.prepare_environment(threads=1)
    runtime.prepare_torch(threads=1)
    from pretrain.checkpointing.manager import CheckpointManager
    from pretrain.engine.zero import init_distributed

    init_distributed()
    engine = _trained_engine(options.depth, options.width)
    manager = CheckpointManager(folder / "ours", engine, keep=1)
    dcp_save = _dcp_saver(engine, folder / "dcp")
    rounds = [_round(number, manager, dcp_save) for number in range(options.rounds + 1)][1:]
    if distributed.is_main():
        result = Result(processes, manager.nbytes / 1e6, rounds)
        (folder / "result.json").write_text(json.dumps(asdict(result)))
    dist.destroy_process_group()


def _round(number: int, manager: Any, dcp_save: Callable[[], Callable[[], object]]) -> Round:
    times: dict[str, float] = {}
    ways = ("background", "waited", "dcp")
    for way in ways[number % 3 :] + ways[: number % 3]:
        if way == "dcp":
            times["dcp"], wait = _timed(dcp_save)
            wait()
            continue
        step = 2 * number + (way == "waited")
        begin = time.monotonic()
        times[way], _ = _timed(partial(manager.begin, {"step": step}))
        if way == "background":
            while distributed.any_rank(not manager.is_written):
                time.sleep(0.02)
            times["complete"] = time.monotonic() - begin
        finishing, _ = _timed(manager.finish)
        times[way] += finishing
    return Round(**times)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call on the slowest rank, and its value."""
    distributed.barrier()
    begin = time.perf_counter()
    value = call()
    return max(distributed.gather_objects(time.perf_counter() - begin)), value


def _trained_engine(depth: int, width: int) -> Any:
    from pretrain.config.engine import EngineConfig
    from pretrain.engine.optimizers import build_adamw
    from pretrain.engine.zero import ZeroEngine

    layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    config = EngineConfig(zero_stage=3, precision="fp32", param_persistence_threshold=0)
    engine = ZeroEngine(model, build_adamw(model, 1e-3, (0.9, 0.95), 0.05), config, 1, 1, 0.0)
    engine.step([engine(torch.ones(1, 4, width, device=distributed.device())).square().mean()])
    return engine


def _dcp_saver(engine: Any, folder: Path) -> Callable[[], Callable[[], object]]:
    """Return a function that begins an asynchronous save of this rank's tensors and returns how to wait for it."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    from pretrain.engine.zero_state import local_state

    group, on_gpu = dist.new_group(backend="gloo"), torch.cuda.is_available()
    stager = DefaultStager(StagingOptions(on_gpu, False, False, on_gpu))

    def save() -> Callable[[], object]:
        state = local_state(engine)
        own = {f"{distributed.rank()}/{name}": one.values for name, one in (state.weights | state.moments).items()}
        future: Any = dcp.async_save(own, checkpoint_id=folder, process_group=group, async_stager=stager)
        return future.result

    return save


def report(results: list[Result], write: Callable[[str], None]) -> None:
    """Print medians and ratios with their spread."""
    write("processes  state MB  background s  waited s   dcp s  background/waited         background/dcp")
    for result in results:
        medians = {name: statistics.median(getattr(one, name) for one in result.rounds) for name in _NAMES}
        spreads = [_spread(result.ratios(other)) for other in ("waited", "dcp")]
        write(
            f"{result.processes:>9}  {result.megabytes:>8.0f}  {medians['background']:>12.3f}  "
            f"{medians['waited']:>8.3f}  {medians['dcp']:>6.3f}  {spreads[0]:<24}  {spreads[1]}"
        )


_NAMES = ("background", "waited", "dcp", "complete")


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def measure(processes: int, options: argparse.Namespace) -> Result:
    """Run one number of processes and return its rounds."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, folder = free.getsockname()[1], Path(name)
        free.close()
        torch.multiprocessing.spawn(run_rank, (processes, port, options, folder), nprocs=processes)
        values = json.loads((folder / "result.json").read_text())
        shutil.rmtree(folder / "ours", ignore_errors=True)
    return Result(values["processes"], values["megabytes"], [Round(**one) for one in values["rounds"]])


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = Parser(description=str(__doc__).partition("\n")[0], plugins=False)
    parser.add_argument("--processes", type=positive, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--depth", type=positive, default=6, help="layers (default: %(default)s)")
    parser.add_argument("--width", type=positive, default=768, help="a multiple of 64 (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="that are counted (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to save; the default is the system's for temporary files")
    parser.add_argument("--json", type=Path, help="write the rounds to this file")
    parser.set_defaults(run=run)
    return run_command(parser, argv)


def run(options: argparse.Namespace) -> None:
    """Measure each number of processes."""
    results = [measure(processes, options) for processes in options.processes]
    report(results, print)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    sys.exit(main())
