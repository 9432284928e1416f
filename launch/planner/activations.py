"""Memory and kernels of the forward and backward passes of a micro batch, traced with the real module on fake tensors.

A trace is a sequence of phases: the forward pass, then one phase from each parameter's gradient to the next. The live
memory of a phase is affine in the micro batch from two batch-norm groups on (one group needs no joining and is traced
separately; attention never materializes its matrix), so two traces of small micro batches determine all others; a test
checks this against a third.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from launch.planner.live_bytes import LiveBytes
from launch.planner.step_trace import KernelCounter, PartCosts, Parts
from pretrain.config import PretrainConfig
from pretrain.config.objective import MaeConfig
from pretrain.models import spectral_parts
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.normalize import Normalizer
from pretrain.models.stem import Stem
from pretrain.models.transformer import Block
from pretrain.models.unit import set_activation_checkpointing, units
from pretrain.models.wave import set_default_spectrum
from pretrain.objectives import masked_loss
from pretrain.objectives.mae import MaeObjective
from pretrain.objectives.masked_autoencoder import MaskedAutoencoder
from pretrain.objectives.masks import MaskedPatches

Device = Literal["cpu", "cuda"]
"""Device whose block sizes the stem and the loss use."""


GROUPS = (1, 2, 4)
"""Numbers of batch-norm groups in the traced micro batches."""


@dataclass(frozen=True)
class Phase:
    """The time from one event to the next.

    Attributes:
        gradient: number of elements of the parameter whose gradient ends the phase, 0 for the forward pass.
        module: module of that parameter.
        peak: peak bytes of activations and temporaries, without weights and finished gradients.
    """

    gradient: int
    module: str
    peak: int


@dataclass(frozen=True)
class Weights:
    """Sizes of a model: elements of each trained parameter in the order of gradients, bytes of buffers, and elements of
    the largest module's own parameters."""

    elements: tuple[int, ...]
    buffers: int
    largest: int

    @property
    def total(self) -> int:
        return sum(self.elements)


@dataclass(frozen=True)
class Activations:
    """Phases as functions of the micro batch.

    Attributes:
        weights: sizes of the traced model.
        group: number of samples in a batch-norm group.
        costs: of the kernels.
    """

    weights: Weights
    group: int
    costs: PartCosts
    _traces: tuple[tuple[Phase, ...], ...]

    def phases(self, micro_batch: int) -> list[Phase]:
        """Return the phases of a micro batch in chronological order."""
        single, double, quadruple = self._traces
        if micro_batch == self.group:
            return list(single)
        share = micro_batch / (2 * self.group) - 1
        return [
            replace(small, peak=max(0, round(small.peak + share * (large.peak - small.peak))))
            for small, large in zip(double, quadruple, strict=True)
        ]

    def peak(self, micro_batch: int) -> int:
        """Return the peak bytes of a micro batch."""
        return max(phase.peak for phase in self.phases(micro_batch))


def trace_activations(config: PretrainConfig, bands: int, checkpointing: bool, device: Device) -> Activations:
    """Trace a run's module at one, two and four batch-norm groups.

    Args:
        config: model, objective and precision of the run.
        bands: number of bands C of the tiles.
        checkpointing: activation checkpointing, overriding the config.
        device: device of the run.
    """
    group = config.model.bn_group
    with _sizes_of_parts(device), FakeTensorMode():
        module = build_module(config, bands)
        set_activation_checkpointing(module, "blocks" if checkpointing else "none")
        if config.engine.precision == "bf16":
            for parameter in module.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        _set_kernels(module, config, device)
        parts, traces, costs = Parts(module, None), [], []
        for groups in GROUPS:
            parts.start()
            with KernelCounter(parts) as counter:
                traces.append(tuple(trace_phases(module, config, bands, groups * group, device)))
            costs.append(counter.costs)
        part_costs = PartCosts((GROUPS[-2] * group, GROUPS[-1] * group), (costs[-2], costs[-1]))
        return Activations(_weights(module, traces[0]), group, part_costs, tuple(traces))


def build_module(config: PretrainConfig, bands: int) -> MaskedAutoencoder:
    """Return the module of an MAE run, with torch-default weights; stems by wavelength get bands of 10 nm."""
    module = MaeObjective.build_module(config, bands, Normalizer([3000.0] * bands, [1732.0] * bands))
    set_default_spectrum(module, [400.0 + 10 * band for band in range(bands)], [10.0] * bands)
    return module


def image_dtype(config: PretrainConfig, device: Device) -> torch.dtype:
    """Return the dtype of a view: of resampled ones on GPUs, half precision unless the run is fp32."""
    if config.augment.crop_scale is None:
        return torch.int16
    return torch.float16 if device == "cuda" and config.engine.precision != "fp32" else torch.float32


def inputs(
    config: PretrainConfig, module: MaskedAutoencoder, micro_batch: int, dtype: torch.dtype, bands: int, device: str
) -> list[Any]:
    """Return images of a dtype, masks and, with ``ignore_nodata``, which pixels are valid, as the objective does."""
    size, mae = config.model.image_size, cast(MaeConfig, config.objective)
    images = torch.zeros(micro_batch, bands, size, size, dtype=dtype, device=device)
    masks = MaskedPatches.in_order(micro_batch, module.count_patches(), device)
    if not mae.ignore_nodata:
        return [images, masks]
    valid = torch.ones(micro_batch, 1, size, size, dtype=torch.bool, device=device)
    return [images, masks, valid, torch.ones((), device=device)]


def trace_phases(
    module: MaskedAutoencoder, config: PretrainConfig, bands: int, micro_batch: int, device: Device
) -> Iterator[Phase]:
    """Trace the forward and backward passes of one micro batch and yield its phases."""
    names = {parameter: name.rpartition(".")[0] for name, parameter in module.named_parameters()}
    arguments = inputs(config, module, micro_batch, image_dtype(config, device), bands, "cpu")
    phases: list[Phase] = []
    with LiveBytes() as live:
        live.add(tree_leaves([*module.parameters(), *module.buffers(), *arguments]))
        base = live.now
        live.restart()

        def ready(parameter: Tensor) -> None:
            phases.append(Phase(parameter.numel(), names[cast(nn.Parameter, parameter)], live.peak - base))
            parameter.grad = None
            live.restart()

        hooks = [parameter.register_post_accumulate_grad_hook(ready) for parameter in module.parameters()]
        precision = config.engine.precision
        with torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext():
            loss = module(*arguments)[0].mean()
        phases.append(Phase(0, "forward", live.peak - base))
        live.restart()
        loss.backward()
    for hook in hooks:
        hook.remove()
    for norm in grouped_batch_norms(module):
        norm.flush()
    return iter(phases)


def _weights(module: nn.Module, phases: tuple[Phase, ...]) -> Weights:
    owned = [sum(p.numel() for p in part.parameters(recurse=False)) for part in module.modules()]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    return Weights(tuple(phase.gradient for phase in phases if phase.gradient), buffers, max(owned))


def _set_kernels(module: nn.Module, config: PretrainConfig, device: Device) -> None:
    """Trace stem and blocks as the run's device computes them, where Triton is installed: it has their operators."""
    fused = device == "cuda" and find_spec("triton") is not None
    for unit in units(module):
        if isinstance(unit, Stem):
            unit.kernel = "triton" if fused and config.engine.stem_kernel != "eager" else "eager"
        if isinstance(unit, Block):
            unit.fuses = fused


@contextmanager
def _sizes_of_parts(device: Device) -> Iterator[None]:
    """Use the block sizes of the run's device in stem and loss, since fake tensors are on the CPU."""
    tables = (spectral_parts.PIXELS, masked_loss.VALUES)
    kept = [table["cpu"] for table in tables]
    for table in tables:
        table["cpu"] = table[device]
    try:
        yield
    finally:
        for table, value in zip(tables, kept, strict=True):
            table["cpu"] = value
