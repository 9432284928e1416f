"""DeepSpeed, and nothing else of it elsewhere: typed config to its dict, initialize, one optimizer step."""

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import distributed
from pretrain.config.engine import EngineConfig
from pretrain.models.activation_checkpointing import Recompute
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.compilation import Body
from pretrain.models.vit import Block


@dataclass(frozen=True)
class StepResult:
    """One optimizer step.

    Attributes:
        losses: of this rank's micro batches, (A,), on the device.
        applied: whether the weights moved.
    """

    losses: Tensor
    applied: bool


_RECOMPUTE: dict[str, Recompute] = {"none": False, "blocks": True, "selective": "selective"}

Accept = Callable[[Tensor, "Tensor | float"], bool]
"""From this rank's mean loss and the gradient norm before clipping (no finite positive number where a gradient is none)
to whether the step is applied; called on every rank, with the same answer on all."""


def deepspeed_config(engine: EngineConfig, micro_batch: int, accumulation: int, clip: float) -> dict[str, Any]:
    """The DeepSpeed dict, from buckets that are `sized`. Defaults that changed between its versions are all set."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "steps_per_print": 2**31,  # the console line is ours
        "wall_clock_breakdown": False,
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
        },
    }
    if engine.precision == "autocast":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if engine.precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return config


def init_distributed() -> None:
    """Start the process group from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    import deepspeed

    warnings.filterwarnings("ignore", module="torch.distributed")  # deprecations inside DeepSpeed, on every step
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "gloo":
        # Its shared-memory collectives are compiled at the first start, for two minutes; gloo needs none.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        torch.cuda.set_device(distributed.device())
        # what NCCL was at when a collective hangs; the last operations of every rank are kept and dumped
        os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(backend, verbose=False)


class ZeroEngine:
    """A model under DeepSpeed ZeRO.

    Args:
        model: on the CPU; moved to this rank's device.
        optimizer: over the model's parameters.
        config: stage and precision.
        micro_batch, accumulation: samples per forward, forwards per step.
        clip: largest gradient norm, 0 for none.

    Attributes:
        deepspeed: the wrapped engine, for checkpoints.
        module: the model itself.
        mark: told what the engine is at when a backward pass is over.
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
        import deepspeed

        self.config = config
        self.accumulation = accumulation
        for part in model.modules():
            if hasattr(part, "recompute"):
                part.recompute = _RECOMPUTE[config.activation_checkpointing]  # type: ignore[assignment]
        Body.compiles = config.compile
        if config.compile and config.zero_stage < 3:  # stage 3 gathers weights inside of the blocks
            compile_blocks(model)
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        exact = _contents(model) if config.precision == "bf16" else {}
        self.deepspeed, *_ = deepspeed.initialize(
            model=model.to(distributed.device()),
            optimizer=optimizer,
            config=deepspeed_config(config.sized(_count(model)), micro_batch, accumulation, clip),
        )
        self.module: nn.Module = self.deepspeed.module
        self.module.train()
        self._set_masters(exact)
        self._gate = _StageZeroGate(self) if config.zero_stage == 0 else _UpdateGate(self)

    @property
    def step_count(self) -> int:
        """Optimizer steps taken, those before a resume included."""
        return self.deepspeed.global_steps

    def set_lr(self, lr: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def step(self, losses: Iterable[Tensor], accept: Accept | None = None) -> StepResult:
        """Backward each micro batch's mean loss as it comes, then take one optimizer step.

        Args:
            losses: lazily, ``accumulation`` scalars, each made by a forward of ``__call__``.
            accept: asked before the weights move; None takes every step that DeepSpeed takes.
        """
        done: list[Tensor] = []
        self._gate.accept = None if accept is None else lambda norm: accept(torch.stack(done).mean(), norm)
        for loss in losses:
            self.deepspeed.backward(loss)
            done.append(loss.detach())
            last = len(done) == self.accumulation
            self.mark("optimizer" if last else "other")
            if last:
                self._gate.before_step()
            self.deepspeed.step()
        applied = self._gate.applied and self.deepspeed.was_step_applied()
        move_batch_norms(self.module, applied)
        return StepResult(torch.stack(done), applied)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, with the weights gathered by ZeRO and under the configured precision."""
        return self.deepspeed(*args, **kwargs)

    def evaluation(self, *args: Any, **kwargs: Any) -> Any:
        """Forward in evaluation mode without gradients; all ranks must call it equally often."""
        self.module.eval()
        try:
            with torch.no_grad():
                return self.deepspeed(*args, **kwargs)
        finally:
            self.module.train()

    def _set_masters(self, exact: dict[str, Tensor]) -> None:
        """DeepSpeed makes the fp32 master from weights that are bf16 already: give it what was rounded away."""
        for name, parameter in self.module.named_parameters():
            if name in exact:
                self.set_weight(parameter, exact.pop(name))

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Put a whole value into a trained weight's fp32 master (stage 0: into the weight); every rank calls it."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        value = value.to(distributed.device())
        if self.config.zero_stage == 0:
            parameter.data.copy_(value)
        elif self.config.zero_stage == 3:  # set_full would fail where the ranks don't divide the number of elements
            safe_set_local_fp32_param(parameter, shard_of(value))
        else:
            safe_set_full_fp32_param(parameter, value)

    def autocast(self) -> torch.autocast:
        """The precision that networks beside the engine compute in: bf16 unless the run is fp32."""
        device = distributed.device().type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.precision != "fp32")

    def shard_of(self, parameter: nn.Parameter) -> Tensor:
        """This rank's 1/N of a trained weight, flat, fp32, padded with zeros.

        The fp32 master under ZeRO-3 and wherever the model is fp32; bf16 weights of stage 2 as they are.
        """
        if self.config.zero_stage < 3:
            return shard_of(parameter.detach())
        from deepspeed.utils import safe_get_local_fp32_param

        return safe_get_local_fp32_param(parameter).flatten()


def compile_blocks(model: nn.Module) -> None:
    """Compile the transformer blocks of a model in place; names and weights stay. Nothing happens until a forward."""
    for part in model.modules():
        if isinstance(part, Block):
            part.compile()


class _UpdateGate:
    """Where a step can still be refused: between the gradient norm and the update.

    ZeRO optimizers compute the norm and apply it in one call. Between the two they tell their loss scaler whether a
    gradient was no number, and throw the step away if ``overflow`` is set. That is the seam: the norm is kept when it
    is computed, and ``overflow`` is set where the step is not accepted, after DeepSpeed's own wait for the norm.
    """

    applied = True
    accept: Callable[[Tensor | float], bool] | None = None

    def __init__(self, engine: ZeroEngine) -> None:
        optimizer = engine.deepspeed.optimizer
        measure_name = "_get_norm_groups" if engine.config.zero_stage == 3 else "scaled_global_norm"
        measure, update_scale = getattr(optimizer, measure_name), optimizer._update_scale
        norm: list[Tensor | float] = []

        def measure_and_keep() -> Any:
            measured = measure()
            norm[:] = [_combine(measured) if isinstance(measured, list) else measured]
            return measured

        def ask(overflow: bool) -> None:
            # where a gradient overflowed before the norm was computed, there is none
            accepted = self.accept is None or self.accept(norm.pop() if norm else -1.0)
            optimizer.overflow = overflow or not accepted
            update_scale(optimizer.overflow)

        setattr(optimizer, measure_name, measure_and_keep)
        optimizer._update_scale = ask

    def before_step(self) -> None:
        """Nothing is due before DeepSpeed's step."""


class _StageZeroGate:
    """At stage 0 the gradients are whole and reduced before DeepSpeed's step: without them, it moves nothing."""

    def __init__(self, engine: ZeroEngine) -> None:
        self.module = engine.module
        self.applied = True
        self.accept: Callable[[Tensor | float], bool] | None = None
        clip = engine.deepspeed.clip_fp32_gradients
        engine.deepspeed.clip_fp32_gradients = lambda: clip() if self.applied else None  # it fails without gradients

    def before_step(self) -> None:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        self.applied = self.accept is None or self.accept(torch.nn.utils.get_total_norm(gradients))
        if not self.applied:
            for parameter in self.module.parameters():
                parameter.grad = None


def _combine(group_norms: list) -> Tensor:
    from deepspeed.runtime.utils import combine_grad_norm_groups

    return combine_grad_norm_groups(group_norms)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _contents(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def shard_of(values: Tensor) -> Tensor:
    """This rank's 1/N of a tensor, flat, fp32, the last one padded with zeros: ZeRO-3's way to cut."""
    world = distributed.world_size()
    flat = values.flatten().float()
    size = -(-flat.numel() // world)
    padded = torch.cat([flat, flat.new_zeros(size * world - flat.numel())])
    return padded.view(world, size)[distributed.rank()].clone()


def move_batch_norms(module: nn.Module, applied: bool = True) -> None:
    """One all-reduce for all running statistics of a model; those of a step that was not applied are dropped."""
    norms = grouped_batch_norms(module)
    pending = [norm.take_pending() for norm in norms]
    if norms and applied:
        merged = distributed.all_reduce_sum(torch.cat(pending))
        for norm, part in zip(norms, merged.split([len(one) for one in pending]), strict=True):
            norm.move(part)
