"""Compare the planner's predictions with the real engine: memory and time of six runs, host time of reduce-scatters.

Each case runs in a separate process that trains a real module with DeepSpeed on one CPU thread. Memory is counted
tensor by tensor as operations allocate them (launch/planner/live_bytes.py), since torch has no memory statistics on a
CPU; time is the median of steps without counting. Predicted times use the rates of a calibration on the same machine.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.config import PretrainConfig
from shards.cli import Parser, run_command

TOLERANCE = 0.10  # relative error of memory
STEPS = 5


@dataclass(frozen=True)
class Case:
    """A run to predict; ``size`` in pixels."""

    model: str
    size: int
    micro_batch: int
    checkpointing: bool
    stage: int


CASES = (
    Case("spec_vit_tiny", 32, 8, False, 3),
    Case("spec_vit_tiny", 64, 16, False, 3),
    Case("spec_vit_tiny", 64, 16, True, 3),
    Case("spec_vit_small", 64, 8, False, 3),
    Case("spec_vit_small", 64, 16, True, 1),
    Case("spec_vit_small", 64, 16, False, 2),
)


@dataclass(frozen=True)
class Row:
    """One case: predicted and measured bytes and seconds of a step."""

    case: Case
    predicted_bytes: int
    measured_bytes: int
    predicted_seconds: float
    measured_seconds: float

    @property
    def error(self) -> float:
        """Error of the predicted memory, relative to the measured one."""
        return self.predicted_bytes / self.measured_bytes - 1


def case_config(case: Case) -> PretrainConfig:
    """Return the config of a case: fp32, crops of the image size."""
    return PretrainConfig.model_validate(
        {
            "run": {"dir": "none"},
            "data": {"shards": "none"},
            "augment": {"crop_scale": None},
            "model": {"name": case.model, "image_size": case.size},
            "objective": {"mask_ratio": 0.75, "decoder": {"depth": 2, "heads": 8}},
            "train": {"steps": 1, "global_batch": case.micro_batch, "micro_batch": case.micro_batch},
            "engine": {
                "precision": "fp32",
                "zero_stage": case.stage,
                "activation_checkpointing": "blocks" if case.checkpointing else "none",
            },
        }
    )


def measure(case: Case) -> tuple[int, float]:
    """Return (peak bytes, seconds) of a step after two warm-up steps, which allocate the optimizer states."""
    import torch

    from launch.planner.calibrate import build_engine, step_of
    from launch.planner.live_bytes import LiveBytes

    torch.set_num_threads(1)
    config = case_config(case)
    with LiveBytes() as live:
        engine = build_engine(config)
        step = step_of(engine, config)
        for _ in range(3):
            gc.collect()
            live.restart()
            step()
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return live.peak, statistics.median(times)


def predict(case: Case, profile: Any) -> tuple[int, float]:
    """Return the planner's prediction for a case on one process of this CPU."""
    import torch

    from launch.planner.activations import trace_activations
    from launch.planner.machines import MACHINES
    from launch.planner.memory import Layout, peak_memory
    from launch.planner.network import Cluster
    from launch.planner.step_time import step_time

    torch.set_num_threads(1)
    config = case_config(case)
    layout = Layout(case.stage, "fp32", 1, "cpu")
    trace = trace_activations(config, 202, case.checkpointing, "cpu")
    moment = peak_memory(config, trace, layout, case.micro_batch, 202)
    alone = Cluster(MACHINES["h100"], 1, 1)  # collectives take no time on one process, whatever the network
    rates = profile.rates("this run")
    time_of_step = step_time(config, 202, trace, layout, alone, rates)
    return moment.total, time_of_step.seconds


def calibration() -> Any:
    """Return a profile of this CPU from the smallest model."""
    import torch

    from launch.planner.calibrate import calibrate

    torch.set_num_threads(1)
    return calibrate(case_config(Case("spec_vit_tiny", 64, 8, False, 3)))


def compare(cases: Sequence[Case]) -> list[Row]:
    """Predict and measure each case."""
    profile = _in_own_process(calibration)
    rows = []
    for case in cases:
        predicted, seconds = _in_own_process(predict, case, profile)
        measured, took = _in_own_process(measure, case)
        rows.append(Row(case, predicted, measured, seconds, took))
    return rows


def measure_reduce_scatter(world: int, tensors: int) -> float:
    """Return the processor seconds that DeepSpeed's reduce-scatter of small tensors takes for ``world`` processes.

    The collective itself is left out: what is left prepares one bucket in Python.
    """
    import torch
    from deepspeed.runtime.comm import coalesced_collectives

    from launch.planner.calibrate import build_engine

    torch.set_num_threads(1)
    build_engine(case_config(CASES[0]))  # starts DeepSpeed's process group
    coalesced_collectives._torch_reduce_scatter_fn = lambda *_, **__: None
    coalesced_collectives.dist.get_world_size = lambda group=None: world
    gradients = [torch.zeros(4096) for _ in range(tensors)]
    times = []
    for _ in range(STEPS):
        began = time.process_time()
        coalesced_collectives.reduce_scatter_coalesced(gradients)
        times.append(time.process_time() - began)
    return statistics.median(times)


def compare_reduce_scatters() -> Iterator[tuple[int, float, float]]:
    """Yield numbers of processes, with the predicted and measured seconds of a bucket of 30 tensors."""
    from launch.planner.host_time import reduce_scatter_seconds
    from launch.planner.memory import Layout

    for world in (8, 64, 256, 1024):
        predicted = reduce_scatter_seconds(30, Layout(3, "fp32", world, "cuda"))
        yield world, predicted, _in_own_process(measure_reduce_scatter, world, 30)


def ranking_errors(rows: Sequence[Row]) -> int:
    """Return the number of pairs of cases whose step times are predicted in the wrong order."""
    pairs = [(first, second) for number, first in enumerate(rows) for second in rows[:number]]
    return sum(
        (first.predicted_seconds < second.predicted_seconds) != (first.measured_seconds < second.measured_seconds)
        for first, second in pairs
    )


def _in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main(argv: list[str] | None = None) -> int:
    """Compare, print and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.bench_plan", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.set_defaults(run=_compare_and_print)
    return parser


def _compare_and_print(arguments: argparse.Namespace) -> int:
    """Compare and print; return 1 if a memory is off by more than 10 % or two step times are out of order."""
    rows = compare(CASES)
    print("| model | px | micro batch | checkpointing | ZeRO | predicted | measured | error | step s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        case = row.case
        checkpointing = "on" if case.checkpointing else "off"
        print(
            f"| {case.model} | {case.size} | {case.micro_batch} | {checkpointing} | {case.stage} "
            f"| {row.predicted_bytes / 1e6:.0f} MB | {row.measured_bytes / 1e6:.0f} MB | {row.error:+.1%} "
            f"| {row.predicted_seconds:.2f} / {row.measured_seconds:.2f} |"
        )
    wrong = ranking_errors(rows)
    worst = max(abs(row.error) for row in rows)
    pairs = len(rows) * (len(rows) - 1) // 2
    for world, predicted, measured in compare_reduce_scatters():
        times = f"{predicted * 1e3:.2f} ms predicted, {measured * 1e3:.2f} ms measured"
        print(f"host time of a reduce-scatter on {world} processes: {times}")
    print(f"worst memory error {worst:.1%}; {wrong} of {pairs} pairs of step times out of order")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return int(worst > TOLERANCE or wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
