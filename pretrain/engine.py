"""DeepSpeed, and nothing else of it elsewhere: typed config to its dict, initialise, one optimizer step."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import distributed
from pretrain.config import EngineConfig
from pretrain.models.batchnorm import grouped_batch_norms


@dataclass(frozen=True)
class StepResult:
    """``loss``: this rank's mean over its micro batches; ``grad_norm``: before clipping. Both may be on the device."""

    loss: Tensor
    grad_norm: Tensor | float


def deepspeed_config(engine: EngineConfig, micro_batch: int, accumulation: int, clip: float) -> dict[str, Any]:
    """The DeepSpeed dict. Defaults that changed between its versions are all set."""
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
    """

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
                part.recompute = config.activation_checkpointing  # type: ignore[assignment]
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        exact = _contents(model) if config.precision == "bf16" else {}
        self.deepspeed, *_ = deepspeed.initialize(
            model=model.to(distributed.device()),
            optimizer=optimizer,
            config=deepspeed_config(config, micro_batch, accumulation, clip),
        )
        self.module: nn.Module = self.deepspeed.module
        self.module.train()
        self._set_masters(exact)

    @property
    def step_count(self) -> int:
        """Optimizer steps taken, those before a resume included."""
        return self.deepspeed.global_steps

    def set_lr(self, lr: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def step(self, losses: Iterable[Tensor]) -> StepResult:
        """Backward each micro batch's mean loss as it comes, then take one optimizer step.

        Args:
            losses: lazily, ``accumulation`` scalars, each made by a forward of ``__call__``.
        """
        total = torch.zeros((), device=distributed.device())
        for loss in losses:
            self.deepspeed.backward(loss)
            if self.config.zero_stage == 0:  # stage 0 clips without telling the norm
                gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
                norm = torch.nn.utils.get_total_norm(gradients)
            self.deepspeed.step()
            total += loss.detach()
        move_batch_norms(self.module)
        if self.config.zero_stage > 0:
            norm = self.deepspeed.get_global_grad_norm()
        return StepResult(total / self.accumulation, norm)

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
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.module.named_parameters():
            if name in exact:
                safe_set_full_fp32_param(parameter, exact.pop(name).to(distributed.device()))

    def autocast(self) -> torch.autocast:
        """The precision that networks beside the engine compute in: bf16 unless the run is fp32."""
        device = distributed.device().type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.precision != "fp32")

    def shard_of(self, parameter: nn.Parameter) -> Tensor:
        """This rank's 1/N of a trained weight, flat, fp32, padded with zeros.

        The fp32 master under ZeRO-3 and wherever the model is fp32; bf16 weights of stages 1 and 2 as they are.
        """
        if self.config.zero_stage < 3:
            return shard_of(parameter.detach())
        from deepspeed.utils import safe_get_local_fp32_param

        return safe_get_local_fp32_param(parameter).flatten()


def _contents(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def shard_of(values: Tensor) -> Tensor:
    """This rank's 1/N of a tensor, flat, fp32, the last one padded with zeros: ZeRO-3's way to cut."""
    world = distributed.world_size()
    flat = values.flatten().float()
    size = -(-flat.numel() // world)
    padded = torch.cat([flat, flat.new_zeros(size * world - flat.numel())])
    return padded.view(world, size)[distributed.rank()].clone()


def move_batch_norms(module: nn.Module) -> None:
    """One all-reduce for all running statistics of a model."""
    norms = grouped_batch_norms(module)
    if norms:
        pending = [norm.take_pending() for norm in norms]
        merged = distributed.all_reduce_sum(torch.cat(pending))
        for norm, part in zip(norms, merged.split([len(one) for one in pending]), strict=True):
            norm.move(part)
