"""The two limits of a MAE step: its operations over a device's peak, its bytes over the memory bandwidth.

Operations are those of metrics/flops.py. Bytes are counted by part: the step (forward, backward; bf16 autocast) runs on
tensors without storage, and the bytes that each operation reads and writes are summed. This assumes eager execution
with one kernel per operation; caches and fused kernels need fewer bytes. AdamW adds 28 bytes per parameter.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.metrics.flops import PEAKS, sample_flops
from pretrain.metrics.phase_timer import PHASES
from pretrain.models import spectral_parts
from pretrain.objectives import masked_loss
from pretrain.objectives.masks import MaskedPatches
from shards.cli import Parser, positive, run_command
from tools import bench_step

BANDWIDTH = {"A100": 2.0e12, "H100": 3.35e12, "H200": 4.8e12}
"""Bytes per second of device memory, from the vendors' data sheets."""

ADAMW_BYTES = 28  # fp32 weight, two moments: read and written; gradient: read
FREE = (
    *("view", "expand", "permute", "transpose", "split", "slice", "select", "unsqueeze", "squeeze", "t.", "as_strided"),
    *("detach", "_unsafe_view", "unfold.", "alias", "unbind", "empty", "new_empty", "device"),
)
"""Operations that move no data."""


class Counter(TorchDispatchMode):
    """Counts the bytes of operations by the part of the network that they belong to."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.parts: dict[str, int] = {}
        self._now, self._outer = "loss", list[str]()
        for name, part in module.named_modules():
            named = PHASES.get(name.rsplit(".", 1)[-1])
            if named is not None:
                self._watch(part, named)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not str(function).split(".", 1)[1].startswith(FREE):
            moved = sum(tensor.numel() * tensor.element_size() for tensor in _tensors([args, result]))
            self.parts[self._now] = self.parts.get(self._now, 0) + moved
        return result

    def _watch(self, module: nn.Module, part: str) -> None:
        def begin(*_: Any) -> None:
            self._outer.append(self._now)
            self._now = part

        def end(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._now = self._outer.pop()
            for tensor in _tensors([output]):
                if tensor.requires_grad:
                    tensor.register_hook(lambda _: setattr(self, "_now", part))

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@contextmanager
def _whole_batches() -> Iterator[None]:
    """Process full batches: splitting them only changes the number of operations to count."""
    before = spectral_parts.PIXELS["cpu"], masked_loss.VALUES["cpu"]
    spectral_parts.PIXELS["cpu"] = masked_loss.VALUES["cpu"] = 2**62
    try:
        yield
    finally:
        spectral_parts.PIXELS["cpu"], masked_loss.VALUES["cpu"] = before


def count(name: str, mask_ratio: float, micro_batch: int) -> tuple[float, dict[str, float]]:
    """Return the operations and the bytes by part of a step, per tile.

    Raises:
        ConfigError: the model is unknown, or the sizes don't fit.
    """
    config = bench_step.run_config(name, micro_batch, 128, mask_ratio, "autocast")
    with _whole_batches(), FakeTensorMode():
        model = bench_step.undrawn(config)
        tiles = torch.empty(micro_batch, bench_step.BANDS, 128, 128, dtype=torch.int16)
        masks = MaskedPatches.in_order(micro_batch, model.count_patches())
        with Counter(model) as counter:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(tiles, masks)[0].mean()
            loss.backward()
        parts = counter.parts | {"optimizer": ADAMW_BYTES * sum(parameter.numel() for parameter in model.parameters())}
        flops = sum(sample_flops(config, bench_step.BANDS).values())
        return flops, {part: moved / micro_batch for part, moved in parts.items()}


def main(argv: list[str] | None = None) -> int:
    """Print a table and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="python -m tools.step_limits", description=__doc__)
    parser.add_argument("--models", default="spec_vit_small,spec_vit_base,spec_vit_large,spec_vit_huge,spec_vit_giant")
    parser.add_argument("--mask-ratios", default="0.75,0.9", help="with commas (default: %(default)s)")
    parser.add_argument("--micro-batch", type=positive, default=64, help="tiles of a step (default: %(default)s)")
    parser.add_argument("--gpu", choices=sorted(BANDWIDTH), default="H100", help="default: %(default)s")
    parser.set_defaults(run=_print_limits)
    return parser


def _print_limits(arguments: argparse.Namespace) -> None:
    peak, bandwidth = PEAKS[arguments.gpu][0], BANDWIDTH[arguments.gpu]
    print(f"{arguments.gpu}: {peak / 1e12:.0f} TFLOP/s in bf16, {bandwidth / 1e12:g} TB/s; ms for each tile")
    print("model            mask  GFLOP   GB  flops  bytes   bytes by part, ms")
    for name in arguments.models.split(","):
        for ratio in map(float, arguments.mask_ratios.split(",")):
            flops, parts = count(name, ratio, arguments.micro_batch)
            moved = sum(parts.values())
            by_part = "  ".join(f"{part} {moved_bytes / bandwidth * 1e3:.3f}" for part, moved_bytes in parts.items())
            print(
                f"{name:<16} {ratio:4.2f} {flops / 1e9:6.0f} {moved / 1e9:4.1f} {flops / peak * 1e3:6.3f} "
                f"{moved / bandwidth * 1e3:6.3f}   {by_part}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
