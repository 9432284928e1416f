"""A model under DeepSpeed ZeRO: the typed config as DeepSpeed's dict, forwards, and optimizer steps."""

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import distributed
from pretrain.config.engine import EngineConfig
from pretrain.engine.compiled_units import compile_units, eager_units, is_compiled
from pretrain.engine.optimizers import group_names, optimizer_state
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.compilation import compiling
from pretrain.models.stem import set_stem_kernel
from pretrain.models.transformer import set_block_kernels
from pretrain.models.unit import set_activation_checkpointing


@dataclass(frozen=True)
class StepResult:
    """One optimizer step.

    Attributes:
        losses: of this rank's micro batches, (A,), on the device.
        applied: whether the weights moved.
    """

    losses: Tensor
    applied: bool


Accept = Callable[[Tensor, Tensor], "float | None"]
"""From this rank's mean loss and the gradient norm before clipping, both on the device, to the norm on the host, or
None to refuse the step; called on every rank, with the same answer on all. Its read is the only one of a step."""


def deepspeed_config(engine: EngineConfig, micro_batch: int, accumulation: int, clip: float) -> dict[str, Any]:
    """Build DeepSpeed's dict from a config whose buckets are `sized`; it sets all defaults that changed in versions."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "steps_per_print": 2**31,  # the console line is ours
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # waits for the device twice per micro batch
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": engine.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": torch.cuda.is_available(),
            "reduce_scatter": True,
            "reduce_bucket_size": engine.reduce_bucket_size,
            "allgather_bucket_size": engine.reduce_bucket_size,
            "stage3_prefetch_bucket_size": engine.prefetch_bucket_size,
            "stage3_param_persistence_threshold": engine.param_persistence_threshold,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "sub_group_size": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": False,
            **engine.deepspeed.passed(),
        },
    }
    if engine.precision == "autocast":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if engine.precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}  # or a non-finite norm would be no overflow
    return config


def init_distributed(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Start the process group from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Args:
        timeout: limit of a collective in this and all later groups.
    """
    from pretrain.engine import deepspeed_adapter  # DeepSpeed takes seconds to import

    deepspeed_adapter.init_distributed(timeout)


class ZeroEngine:
    """A model under DeepSpeed ZeRO.

    Args:
        model: on the CPU; moved to this rank's device.
        optimizer: over the model's parameters.
        config: stage and precision.
        micro_batch, accumulation: samples per forward, forwards per step.
        clip: largest gradient norm, 0 for none.

    Attributes:
        adapter: to DeepSpeed.
        module: the model.
        names: of the trained parameters.
        parameter_count: elements of all parameters.
        compiles: whether units and compilable functions run compiled in training.
        optimizer_state: what the optimizer keeps for each weight.
        group_names: names of the parameters in each of the optimizer's groups.
        mark: callback invoked with the phase that begins after each backward pass.
    """

    mark: Callable[[str], None] = staticmethod(lambda part: None)

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        micro_batch: int,
        accumulation: int,
        clip: float,
    ) -> None:
        from pretrain.engine import deepspeed_adapter

        self.config = config
        self.accumulation = accumulation
        set_activation_checkpointing(model, config.activation_checkpointing)
        set_stem_kernel(model, config.stem_kernel, distributed.device())
        set_block_kernels(model, distributed.device())
        self.compiles = is_compiled(config.compile, distributed.device())
        if self.compiles:
            compile_units(model)
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameter_count = sum(parameter.numel() for parameter in model.parameters())
        self.optimizer_state = optimizer_state(optimizer)
        self.group_names = group_names(model, optimizer)
        exact = _contents(model) if config.precision == "bf16" else {}
        settings = deepspeed_config(config.sized(self.parameter_count), micro_batch, accumulation, clip)
        self.adapter = deepspeed_adapter.start(model.to(distributed.device()), optimizer, settings)
        self.module: nn.Module = self.adapter.module
        self.module.train()
        self._set_masters(exact)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameter groups, each times its ``lr_scale``."""
        for group in self.adapter.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def step(self, losses: Iterable[Tensor], accept: Accept | None = None) -> StepResult:
        """Backward each micro batch's mean loss as it comes, then take one optimizer step.

        Args:
            losses: lazily, ``accumulation`` scalars, each made by a forward of ``__call__``.
            accept: asked before the weights move; None takes every step whose gradients are finite.
        """
        done: list[Tensor] = []
        applied = False
        for loss in losses:
            self.adapter.engine.backward(loss)
            done.append(loss.detach())
            if len(done) < self.accumulation:
                self.mark("other")
                self.adapter.engine.step()
            else:
                self.mark("optimizer")
                mean = torch.stack(done).mean()
                applied = self.adapter.step(read_norm if accept is None else partial(accept, mean))
        move_batch_norms(self.module, applied)
        return StepResult(torch.stack(done), applied)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the weights gathered by ZeRO and under the configured precision."""
        with compiling(self.compiles):
            return self.adapter.engine(*args, **kwargs)

    def evaluation(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model in evaluation mode without gradients; all ranks must call it equally often."""
        self.module.eval()
        try:
            with torch.no_grad(), eager_units(self.compiles):
                return self.adapter.engine(*args, **kwargs)
        finally:
            self.module.train()

    def _set_masters(self, exact: dict[str, Tensor]) -> None:
        """Set fp32 masters to the exact weights: DeepSpeed creates them from weights that are already bf16."""
        for name, parameter in self.module.named_parameters():
            if name in exact:
                self.set_weight(parameter, exact.pop(name))

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set a trained weight's fp32 master (stage 0: the weight) to a whole value; every rank must call it."""
        self.adapter.set_weight(parameter, value.to(distributed.device()))

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """Let networks beside the engine compute as it does: in bf16 unless the run is fp32, compiled if it is."""
        device = distributed.device().type
        autocast = torch.autocast(device, torch.bfloat16, enabled=self.config.precision != "fp32")
        with autocast, compiling(self.compiles):
            yield

    def shard_of(self, parameter: nn.Parameter) -> Tensor:
        """Return this rank's 1/N of a trained weight, flat, fp32, padded with zeros.

        It is the fp32 master under ZeRO-3 and wherever the model is fp32, and the bf16 weight at stage 2.
        """
        return self.adapter.shard_of(parameter)


def read_norm(norm: Tensor) -> float | None:
    """Return a gradient norm on the host, or None if it is non-finite."""
    with distributed.reading():
        value = norm.item()
    return value if math.isfinite(value) else None


def _contents(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def move_batch_norms(module: nn.Module, applied: bool = True) -> None:
    """Update all running statistics of a model with one all-reduce, or drop those of a step that was not applied.

    Numbers of groups stay on the host: all ranks have equally many.
    """
    norms = grouped_batch_norms(module)
    pending = [norm.flush() for norm in norms]
    if norms and applied:
        merged = distributed.all_reduce_sum(torch.cat([sums for sums, _ in pending], 1))
        parts = merged.split([sums.shape[1] for sums, _ in pending], 1)
        for norm, part, (_, groups) in zip(norms, parts, pending, strict=True):
            norm.move(part, groups * distributed.world_size())
