"""Predict the time of MAE steps on a GPU without one: kernels counted by tools/fake_cuda, and a roofline for each.

A kernel takes the longer of its FLOPs over 72 % of the GPU's peak and its bytes over 90 % of its bandwidth, and at
least 2 us. The step is the sum of its kernels, and its MFU assumes that collectives are hidden; the last column is
their time if they were not. Host time is not predicted: the host must queue a kernel in less than "us/kernel" on
average, or it limits the step.
"""

import argparse
import sys
from typing import Any

from launch.planner.machines import MACHINES, Machine
from shards.cli import Parser, positive, run_command
from tools.fake_cuda import shim

MODELS = {"s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}
"""Models by the letter in the names of configs."""

PARTS = ("augment", "stem", "encoder", "decoder", "loss", "communication", "optimizer")


def main(argv: list[str] | None = None) -> int:
    """Print a table and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.step_limits", description=__doc__)
    parser.add_argument("--models", default="s,b,l,h,g", help="letters of configs, with commas (default: %(default)s)")
    parser.add_argument("--mask-ratios", default="0.75,0.9", help="with commas (default: %(default)s)")
    parser.add_argument("--stages", default="2", help="ZeRO stages, with commas (default: %(default)s)")
    parser.add_argument("--precision", default="bf16", help="engine.precision (default: %(default)s)")
    parser.add_argument("--micro-batch", type=positive, default=64, help="tiles of a step (default: %(default)s)")
    parser.add_argument("--world", type=positive, default=8, help="GPUs of one node (default: %(default)s)")
    parser.add_argument("--gpu", choices=sorted(MACHINES), default="h100", help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="other keys of the configs")
    parser.set_defaults(run=_print_limits)
    return parser


def _print_limits(arguments: argparse.Namespace) -> None:
    machine = MACHINES[arguments.gpu]
    shim.load()
    from tools.fake_cuda import runtime

    runtime.install()
    print(
        f"{machine.name}: {machine.peak('bf16') / 1e12:.0f} TFLOP/s in bf16, {machine.hbm / 1e12:g} TB/s; "
        f"micro batch {arguments.micro_batch}, {arguments.precision}, {arguments.world} GPUs; ms of a step"
    )
    print(f"model mask stage  kernels    GB {' '.join(map(_column, PARTS))}      sum  MFU  us/kernel  collectives")
    for model in arguments.models.split(","):
        for ratio in map(float, arguments.mask_ratios.split(",")):
            for stage in map(int, arguments.stages.split(",")):
                print(_row(model, ratio, stage, arguments, machine), flush=True)


def _row(model: str, ratio: float, stage: int, arguments: argparse.Namespace, machine: Machine) -> str:
    from pretrain.metrics.flops import sample_flops
    from tools.fake_cuda.cases import Case
    from tools.fake_cuda.inputs import TILE_SHAPE
    from tools.fake_cuda.report import to_dict
    from tools.fake_cuda.step import count_step

    tiles, world = arguments.micro_batch, arguments.world
    overrides = [f"train.micro_batch={tiles}", f"train.global_batch={tiles * world}", f"engine.zero_stage={stage}"]
    overrides += [f"objective.mask_ratio={ratio}", f"engine.precision={arguments.precision}"]
    overrides += ["engine.activation_checkpointing=none"]
    config = Case(model, f"mae/spec_vit_{model}", (*overrides, *arguments.overrides)).load()
    counted = to_dict(count_step(config, world, machine), machine, world)
    flops = tiles * sum(sample_flops(config, TILE_SHAPE[0]).values())
    return format_row(f"{model:<5} {ratio:4.2f} {stage:5}", counted, flops / machine.peak(arguments.precision))


def _column(part: str) -> str:
    """Return a part's name in the width of its column."""
    return f"{part:>8}"


def format_row(name: str, counted: dict[str, Any], ideal: float) -> str:
    """Return a row of the table.

    Args:
        ideal: seconds of the step's operations at the GPU's peak.
    """
    parts = counted["parts"]
    kernels = sum(work["kernels"] for work in parts.values())
    moved, seconds = (sum(work[key] for work in parts.values()) for key in ("bytes", "seconds"))
    talk = sum(collective["seconds"] for collective in counted["collectives"].values())
    by_part = " ".join(f"{parts[part]['seconds'] * 1e3:{len(_column(part))}.2f}" for part in PARTS if part in parts)
    return (
        f"{name}  {kernels:7} {moved / 1e9:5.1f} {by_part} {seconds * 1e3:8.1f} {ideal / seconds:4.0%} "
        f"{seconds / kernels * 1e6:10.1f} {talk * 1e3:12.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
