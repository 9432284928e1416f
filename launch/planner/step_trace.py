"""The kernels of a micro batch by part of the network, counted on fake tensors, and their time by the roofline.

The trace runs on the CPU's operations without storage, one kernel for each. On GPUs a few parts run as fewer kernels
with less traffic (see `FUSED`), and the step has parts that are not in the module (see `Outside`).
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from launch.planner.kernel_costs import Cost, cost, launches
from launch.planner.machines import Machine
from pretrain.metrics.phase_timer import PhaseTimer


class Parts(PhaseTimer):
    """The part of the step that runs, as the trainer's own timer tells phases, but without its "other".

    What objectives do before and between forward passes is augmentation; what the module does outside of its networks
    is loss.
    """

    part = "augment"

    def __init__(self, module: nn.Module, momentum: nn.Module | None) -> None:
        super().__init__(module, momentum, torch.device("cpu"))
        module.register_forward_pre_hook(lambda *_: self.mark("loss"))
        module.register_forward_hook(lambda *_: self.mark("loss"))  # until the gradient of a network's output arrives

    def mark(self, phase: str | None) -> None:
        self._now = self.part = "augment" if phase in (None, "other") else phase


@dataclass
class KernelCounter(TorchDispatchMode):
    """Collects the costs of kernels by part while a step runs inside it.

    Attributes:
        parts: knows the part that runs.
        costs: so far.
    """

    parts: Parts
    costs: dict[str, list[Cost]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace != "prim" and launches(func):
            self.costs[self.parts.part].append(cost(func, args, kwargs or {}, result))
        return result


@dataclass(frozen=True)
class PartCosts:
    """Kernels by part at two micro batches, which determine those at any other: bytes and operations are affine.

    Attributes:
        sizes: the two micro batches.
        costs: of each.
    """

    sizes: tuple[int, int]
    costs: tuple[Mapping[str, list[Cost]], Mapping[str, list[Cost]]]

    def seconds(self, part: str, micro_batch: int, machine: Machine) -> float:
        """Return the device time of a part."""
        return self._affine(micro_batch, *(sum(one.seconds(machine) for one in costs[part]) for costs in self.costs))

    def kernels(self, micro_batch: int) -> int:
        """Return the number of kernels of all parts."""
        return round(self._affine(micro_batch, *(sum(map(len, costs.values())) for costs in self.costs)))

    def _affine(self, micro_batch: int, small: float, large: float) -> float:
        low, high = self.sizes
        return max(0.0, small + (large - small) * (micro_batch - low) / (high - low))
