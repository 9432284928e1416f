"""The DeepSpeed adapter: the one module that imports DeepSpeed and uses what DeepSpeed doesn't document.

DeepSpeed's checkpoints are bound to the world size and stage that wrote them, and its step computes the norm and
applies the update in one call. This project needs the state of a training by parameter name, and a decision between
norm and update. Both rely on private attributes of DeepSpeed. `start` checks that all of them exist.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from operator import attrgetter
from typing import Any, ClassVar

import deepspeed
import torch
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn

from pretrain import distributed
from pretrain.console import log
from pretrain.engine.gradients import clip, global_norm, local_norm
from pretrain.engine.leaf_modules import set_leaf_modules
from pretrain.engine.sharding import Piece, range_of, shard_of
from pretrain.engine.stream_order import order_streams
from shards.errors import ForgeError

TESTED = ">=0.19.8,<0.20"  # versions that the tests run with; setup.cfg requires the same

NormAccept = Callable[[Tensor], "float | None"]
"""From the gradient norm before clipping, on the device, to the norm on the host, or None to refuse the step; every
rank gets the same answer."""


def init_distributed(timeout: timedelta) -> None:
    """Start the process group from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; see zero.py."""
    warnings.filterwarnings("ignore", module="torch.distributed")  # deprecations inside DeepSpeed, on every step
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "gloo":
        # DeepSpeed compiles its shared-memory collectives at the first start, for two minutes; gloo needs none.
        _require(deepspeed, ["ops.__compatible_ops__"], "deepspeed")
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        distributed.adopt_device()
    if torch.distributed.is_initialized():
        return
    distributed.set_default_timeout(timeout)
    deepspeed.init_distributed(backend, verbose=False, timeout=timeout)


def read_config(config: dict[str, Any]) -> Any:
    """Return DeepSpeed's own reading of its dict; raises what DeepSpeed raises."""
    return deepspeed.runtime.config.DeepSpeedConfig(config)


def start(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> "DeepSpeedAdapter":
    """Initialize DeepSpeed for a model on this rank's device and return the adapter of the config's ZeRO stage.

    Args:
        config: DeepSpeed's dict.

    Raises:
        ForgeError: this version of DeepSpeed lacks an attribute that the adapter uses.
    """
    if not SpecifierSet(TESTED).contains(deepspeed.__version__, prereleases=True):
        log(f"WARNING: DeepSpeed {deepspeed.__version__} is not one of the tested versions {TESTED}")
    if (stage := config["zero_optimization"]["stage"]) == 3:
        set_leaf_modules(model, deepspeed.utils.set_z3_leaf_module)
    _import_muon()
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return (StageZero, PartitionedOptimizer, PartitionedOptimizer, PartitionedWeights)[stage](engine)


def _import_muon() -> None:
    """Import DeepSpeed's Muon uncompiled: it is no optimizer of ours, but initializing an engine imports it.

    Muon calls torch.compile at import, which loads Inductor: two seconds of each process that compiles nothing.
    """
    compile_ = torch.compile
    vars(torch)["compile"] = lambda function=None, **_: function or (lambda decorated: decorated)
    try:
        with suppress(ImportError):
            import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        vars(torch)["compile"] = compile_


class DeepSpeedAdapter(ABC):
    """A model under DeepSpeed at one ZeRO stage. All ranks must call its methods alike: most are collective.

    Attributes:
        engine, optimizer: DeepSpeed's.
        module: the model.
        MODULE, ENGINE, OPTIMIZER: names that it uses of DeepSpeed itself and of these two.
    """

    MODULE: ClassVar[Sequence[str]] = ()
    ENGINE: ClassVar[Sequence[str]] = ("module", "optimizer", "global_steps", "was_step_applied")
    OPTIMIZER: ClassVar[Sequence[str]] = ()

    def __init__(self, engine: Any) -> None:
        _require(deepspeed, self.MODULE, "deepspeed")
        _require(engine, self.ENGINE, type(engine).__name__)
        _require(engine.optimizer, self.OPTIMIZER, type(engine.optimizer).__name__)
        self.engine, self.optimizer = engine, engine.optimizer
        self.module: nn.Module = engine.module

    @property
    def steps(self) -> int:
        """Optimizer steps taken, those before a resume included."""
        return self.engine.global_steps

    @steps.setter
    def steps(self, value: int) -> None:
        self.engine.global_steps = value

    @property
    @abstractmethod
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer inside DeepSpeed's."""

    @abstractmethod
    def step(self, accept: NormAccept) -> bool:
        """End an optimizer step's last micro batch; take the step unless ``accept`` refuses it, and return which."""

    @abstractmethod
    def flat_partitions(self) -> Iterable[Tensor]:
        """Return the tensors that the torch optimizer steps: this rank's flat fp32 partitions, or the parameters."""

    @abstractmethod
    def weight_piece(self, parameter: nn.Parameter) -> Piece:
        """Return what this rank holds of a weight's fp32 master, a view; the whole weight at stage 0."""

    @abstractmethod
    def moment_piece(self, parameter: nn.Parameter, name: str) -> Piece:
        """Return what this rank holds of a moment, a view; the whole moment at stage 0."""

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.data.copy_(value)

    def get_frozen(self, parameter: nn.Parameter) -> Tensor:
        return parameter.data

    def set_frozen(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.data.copy_(value)

    def link_moments(self) -> None:  # noqa: B027  # stages 1 and 2 alone need it
        """Let parameters find moments that exist already; needed before they are read or set."""

    def refresh_model_copies(self) -> None:  # noqa: B027  # stage 0 has no copies
        """Update the copies of weights that the forward uses from fp32 masters that were set."""

    def shard_of(self, parameter: nn.Parameter) -> Tensor:
        """Return this rank's 1/N of a trained weight, flat, fp32, padded with zeros (see `sharding.shard_of`)."""
        return shard_of(parameter.detach())

    def shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        return tuple(parameter.shape)


class StageZero(DeepSpeedAdapter):
    """Stage 0: gradients are whole and reduced before DeepSpeed's step, which moves nothing without gradients."""

    ENGINE = (*DeepSpeedAdapter.ENGINE, "clip_fp32_gradients", "gradient_clipping")

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        # DeepSpeed's function computes the norm again
        engine.clip_fp32_gradients = lambda: clip(self._gradients(), self._norm, engine.gradient_clipping())

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer

    def step(self, accept: NormAccept) -> bool:
        self._norm = local_norm(self._gradients())
        accepted = accept(self._norm) is not None
        if not accepted:
            self.module.zero_grad()
        self.engine.step()
        return accepted and self.engine.was_step_applied()

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]

    def flat_partitions(self) -> Iterable[Tensor]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def weight_piece(self, parameter: nn.Parameter) -> Piece:
        return Piece(0, parameter.data.view(-1))

    def moment_piece(self, parameter: nn.Parameter, name: str) -> Piece:
        return Piece(0, self.optimizer.state[parameter][name].view(-1))


class PartitionedAdapter(DeepSpeedAdapter):
    """Stages 1 to 3.

    A ZeRO optimizer computes the norm and applies the update in one call, which discards the step if the norm is
    non-finite. This replaces the method that computes the norm on the instance, ``NORM``: the norm is infinite where
    the step is refused, and on the host, so that DeepSpeed checks it and clips by it without reading the device.
    """

    NORM: ClassVar[str]
    OFFLOADED: ClassVar[str]  # whether gradients are on the host

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self._compute_norm = getattr(self.optimizer, self.NORM)
        setattr(self.optimizer, self.NORM, self._decide)

    def step(self, accept: NormAccept) -> bool:
        self._accept = accept
        self.engine.step()
        return self.engine.was_step_applied()

    def _decide(self) -> Any:
        """Return the accepted norm of all gradients, float32 () on the CPU, infinity if the step is refused."""
        norm = self._accept(self._norm())
        return torch.tensor(math.inf if norm is None else norm)

    def _norm(self) -> Tensor:
        """Compute the norm on the device; DeepSpeed's own method waits for the device in each parameter group."""
        if getattr(self.optimizer, self.OFFLOADED):
            norms = self._compute_norm()  # at stage 3 of each parameter group
            norm = deepspeed.runtime.utils.combine_grad_norm_groups(norms if isinstance(norms, list) else [norms])
            return norm.to(distributed.device())
        return global_norm(gradient for group in self.optimizer.averaged_gradients.values() for gradient in group)

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer


class PartitionedOptimizer(PartitionedAdapter):
    """Stages 1 and 2: every rank has the weights, and 1/N of the fp32 masters and moments."""

    NORM, OFFLOADED = "scaled_global_norm", "cpu_offload"
    MODULE = (
        "utils.safe_set_full_fp32_param runtime.utils.all_gather_dp_groups runtime.utils.combine_grad_norm_groups"
    ).split()
    OPTIMIZER = (
        "scaled_global_norm cpu_offload overlap_comm reduction_stream averaged_gradients check_overflow "
        "independent_gradient_partition_epilogue optimizer single_partition_of_fp32_groups "
        "_hp_optimizer_states_linked _lazy_init_hp_params_optimizer_state real_dp_process_group "
        "parallel_partitioned_bit16_groups bit16_groups_flat nccl_start_alignment_factor allgather_bucket_size"
    ).split()

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.optimizer.check_overflow = lambda **_: None  # reads the device; a non-finite norm says the same
        if self.optimizer.overlap_comm and not self.optimizer.cpu_offload:
            order_streams(self.optimizer, deepspeed.accelerator.get_accelerator(), self.optimizer.reduction_stream)

    def flat_partitions(self) -> Iterable[Tensor]:
        return self.optimizer.single_partition_of_fp32_groups

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        deepspeed.utils.safe_set_full_fp32_param(parameter, value)

    def weight_piece(self, parameter: nn.Parameter) -> Piece:
        return self._piece(parameter, None)

    def moment_piece(self, parameter: nn.Parameter, name: str) -> Piece:
        return self._piece(parameter, name)

    def _piece(self, parameter: Any, moment: str | None) -> Piece:
        """Return this rank's fragment of a weight or moment: ranks divide a parameter group, not each parameter."""
        _require(parameter, ("_hp_mapping",), type(parameter).__name__)
        mapping = parameter._hp_mapping
        if mapping is None:  # all of it is in the partitions of other ranks
            return Piece(0, torch.empty(0))
        return Piece(mapping.lp_fragment_address.start, mapping.get_hp_fragment(moment).detach())

    def link_moments(self) -> None:
        """DeepSpeed links parameters to moments once, for the first group only; link those of all groups."""
        self.optimizer._hp_optimizer_states_linked = False
        self.optimizer._lazy_init_hp_params_optimizer_state()

    def refresh_model_copies(self) -> None:
        optimizer = self.optimizer
        for group, flat in enumerate(optimizer.single_partition_of_fp32_groups):
            rank = torch.distributed.get_rank(group=optimizer.real_dp_process_group[group])
            optimizer.parallel_partitioned_bit16_groups[group][rank].data.copy_(flat.data)
        deepspeed.runtime.utils.all_gather_dp_groups(
            groups_flat=optimizer.bit16_groups_flat,
            partitioned_param_groups=optimizer.parallel_partitioned_bit16_groups,
            dp_process_group=optimizer.real_dp_process_group,
            start_alignment_factor=optimizer.nccl_start_alignment_factor,
            allgather_bucket_size=optimizer.allgather_bucket_size,
        )


class PartitionedWeights(PartitionedAdapter):
    """Stage 3: every rank has 1/N of the weights, too."""

    NORM, OFFLOADED = "_get_norm_groups", "offload_optimizer"
    MODULE = (
        "utils.safe_get_local_fp32_param utils.safe_set_local_fp32_param utils.safe_get_local_optimizer_state "
        "runtime.utils.combine_grad_norm_groups zero.GatheredParameters"
    ).split()
    OPTIMIZER = (
        "_get_norm_groups offload_optimizer reduce_and_partition_stream averaged_gradients optimizer "
        "independent_gradient_partition_epilogue fp32_partitioned_groups_flat fp16_partitioned_groups_flat "
        "_partition_all_parameters _unflatten_partitioned_parameters persistent_parameters invalidate_secondary_tensor"
    ).split()

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        for parameter in engine.module.parameters():
            _require(parameter, ("ds_shape", "partition", "all_gather"), type(parameter).__name__)
        if (reduction := self.optimizer.reduce_and_partition_stream) and not self.optimizer.offload_optimizer:
            order_streams(self.optimizer, reduction, reduction)

    def _decide(self) -> Any:
        return [super()._decide()]  # as the norms of parameter groups, of one

    def flat_partitions(self) -> Iterable[Tensor]:
        return self.optimizer.fp32_partitioned_groups_flat

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        # safe_set_full_fp32_param fails where the ranks don't divide the number of elements
        deepspeed.utils.safe_set_local_fp32_param(parameter, shard_of(value))

    def get_frozen(self, parameter: nn.Parameter) -> Tensor:
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.data.clone()

    def set_frozen(self, parameter: nn.Parameter, value: Tensor) -> None:
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if distributed.is_main():
                parameter.data.copy_(value)

    def weight_piece(self, parameter: nn.Parameter) -> Piece:
        return self._piece(parameter, deepspeed.utils.safe_get_local_fp32_param(parameter))

    def moment_piece(self, parameter: nn.Parameter, name: str) -> Piece:
        return self._piece(parameter, deepspeed.utils.safe_get_local_optimizer_state(parameter, name))

    def _piece(self, parameter: Any, partition: Tensor) -> Piece:
        start, count = range_of(parameter.ds_numel)
        return Piece(start, partition.detach().view(-1)[:count])

    def refresh_model_copies(self) -> None:
        optimizer = self.optimizer
        optimizer._partition_all_parameters()  # an evaluation or a refused step leaves weights gathered
        optimizer.invalidate_secondary_tensor()
        for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[group].data.copy_(flat.data)
            optimizer._unflatten_partitioned_parameters(group)
        persistent = optimizer.persistent_parameters
        if persistent:  # these stay gathered between steps, so they are copies too
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)

    def shard_of(self, parameter: nn.Parameter) -> Tensor:
        return deepspeed.utils.safe_get_local_fp32_param(parameter).flatten()

    def shape(self, parameter: Any) -> tuple[int, ...]:
        return tuple(parameter.ds_shape)


def _require(owner: Any, names: Iterable[str], called: str) -> None:
    """Raise ForgeError if an object lacks one of the dotted names."""
    for name in names:
        try:
            attrgetter(name)(owner)
        except AttributeError:
            raise ForgeError(
                f"DeepSpeed {deepspeed.__version__} has no {called}.{name}, which this version of SpectralForge uses: "
                f"pip install 'deepspeed{TESTED}'"
            ) from None
