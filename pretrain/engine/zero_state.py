"""The state of a training under DeepSpeed ZeRO, by name: out of an engine, and into one of any world size and stage.

Every rank takes part in gathering each tensor and keeps those that it owns, so a rank never holds more than its
share. This reads private attributes of DeepSpeed's ZeRO optimizers, whose public checkpoints are bound to the world
size and stage that wrote them; setup.cfg therefore bounds its version, and the tests run the matrix.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor, nn

from pretrain import distributed
from pretrain.engine.zero import ZeroEngine, shard_of

MOMENTS = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq"), torch.optim.SGD: ("momentum_buffer",)}


@dataclass(frozen=True)
class OwnedState:
    """A rank's share of a training's state, fp32 on the CPU.

    Attributes:
        weights: parameters, frozen ones too, and (rank 0) buffers, by name.
        moments: of the optimizer, by ``parameter/moment``.
        adam_step: updates that Adam has made; 0 under SGD.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    adam_step: float


def gather_state(engine: ZeroEngine) -> OwnedState:
    """Every parameter and moment, each on the rank that owns it; every rank must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if _base_optimizer(engine).state:
        _link_moments(engine)
    else:  # nothing was applied yet
        _create_moments(engine, 0.0)
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    trained, names = set(engine.names), moment_names(engine)
    for number, (name, parameter) in enumerate(engine.module.named_parameters()):
        own = number % distributed.world_size() == distributed.rank()
        full = _full_weight(engine, parameter, name in trained)
        if own:
            weights[name] = _cpu_copy(full)
        for moment in names if name in trained else ():
            if engine.config.zero_stage == 0:
                value = engine.deepspeed.optimizer.state[parameter][moment]
            else:  # collective: every rank calls it for every parameter
                value = safe_get_full_optimizer_state(parameter, moment)
            if own:
                moments[f"{name}/{moment}"] = _cpu_copy(value)
    if distributed.is_main():
        weights |= {name: buffer.detach().cpu().clone() for name, buffer in engine.module.named_buffers()}
    states = _base_optimizer(engine).state.values()
    return OwnedState(weights, moments, max((float(state.get("step", 0)) for state in states), default=0.0))


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """XXH3-64 of all ranks' weights, each with its name, summed: the same however ranks share them."""
    mine = sum(_hash(name, value) for name, value in weights.items())
    return f"{sum(distributed.gather_objects(mine)) % 2**64:016x}"


def set_state(
    engine: ZeroEngine, weight: Callable[[str], Tensor], moment: Callable[[str], Tensor], adam_step: float
) -> None:
    """Put a state into an engine; every rank must call it.

    Args:
        weight: a parameter by its name, whole.
        moment: of the optimizer, by ``parameter/moment``, whole.
    """
    _create_moments(engine, adam_step)
    trained = set(engine.names)
    for name, parameter in engine.module.named_parameters():
        if name not in trained:
            _set_frozen(parameter, weight(name))
            continue
        engine.set_weight(parameter, weight(name))
        for one in moment_names(engine):
            _set_moment(engine, parameter, one, moment(f"{name}/{one}"))
    _refresh_model_copies(engine)


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of whole parameters, also where ZeRO-3 holds them."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in module.named_parameters()}


def moment_names(engine: ZeroEngine) -> tuple[str, ...]:
    """What the optimizer keeps for each weight."""
    return MOMENTS[type(_base_optimizer(engine))]


def state_bytes(engine: ZeroEngine) -> int:
    """Bytes of the whole state: fp32 weights, moments and buffers."""
    copies = 1 + len(moment_names(engine))
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    return 4 * copies * parameters + sum(buffer.nbytes for buffer in engine.module.buffers())


def _full_weight(engine: ZeroEngine, parameter: nn.Parameter, trained: bool) -> Tensor:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if trained and engine.config.zero_stage > 0:
        return safe_get_full_fp32_param(parameter)
    if hasattr(parameter, "ds_id"):  # a frozen weight has no fp32 master: what the model computes with is all there is
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.data.clone()
    return parameter.data


def _set_frozen(parameter: nn.Parameter, value: Tensor) -> None:
    import deepspeed

    if hasattr(parameter, "ds_id"):
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if distributed.is_main():
                parameter.data.copy_(value)
    else:
        parameter.data.copy_(value)


def _set_moment(engine: ZeroEngine, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    value = value.to(distributed.device())
    if engine.config.zero_stage == 0:
        engine.deepspeed.optimizer.state[parameter][moment].copy_(value)
    elif engine.config.zero_stage == 3:  # see ZeroEngine.set_weight
        safe_set_local_optimizer_state(parameter, shard_of(value), moment)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)


def _cpu_copy(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone().contiguous()


def _hash(name: str, value: Tensor) -> int:
    content = xxhash.xxh3_64(name.encode())
    content.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.intdigest()


def _base_optimizer(engine: ZeroEngine) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's."""
    optimizer = engine.deepspeed.optimizer
    return optimizer if engine.config.zero_stage == 0 else optimizer.optimizer


def _flat_partitions(engine: ZeroEngine) -> Iterator[Tensor]:
    """The tensors that the torch optimizer steps: this rank's flat fp32 partitions, or the parameters at stage 0."""
    if engine.config.zero_stage == 0:
        yield from (p for p in engine.module.parameters() if p.requires_grad)
    elif engine.config.zero_stage == 3:
        yield from engine.deepspeed.optimizer.fp32_partitioned_groups_flat
    else:
        yield from engine.deepspeed.optimizer.single_partition_of_fp32_groups


def _create_moments(engine: ZeroEngine, adam_step: float) -> None:
    """Optimizers make their moments in the first step; those that are loaded have to be there before."""
    base = _base_optimizer(engine)
    for flat in _flat_partitions(engine):
        base.state[flat] = {moment: torch.zeros_like(flat) for moment in moment_names(engine)}
        if isinstance(base, torch.optim.AdamW):
            base.state[flat]["step"] = torch.tensor(adam_step, dtype=torch.float32, device=flat.device)
    _link_moments(engine)


def _link_moments(engine: ZeroEngine) -> None:
    """Stages 1 and 2 link parameters to their moments once, for the first group only; do it anew for all groups."""
    if engine.config.zero_stage in (1, 2):
        engine.deepspeed.optimizer._hp_optimizer_states_linked = False
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def _refresh_model_copies(engine: ZeroEngine) -> None:
    """Setting the fp32 master leaves the copies that the forward uses as they were; bring them after it."""
    optimizer = engine.deepspeed.optimizer
    if engine.config.zero_stage == 3:
        optimizer._partition_all_parameters()  # weights that an evaluation or a skipped step has left gathered
        for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[group].data.copy_(flat.data)
            optimizer._unflatten_partitioned_parameters(group)
        persistent = getattr(optimizer, "persistent_parameters", [])
        if persistent:  # these stay gathered between steps, so they are copies too
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)
    elif engine.config.zero_stage in (1, 2):
        from deepspeed.runtime.utils import all_gather_dp_groups

        for group, flat in enumerate(optimizer.single_partition_of_fp32_groups):
            rank = torch.distributed.get_rank(group=optimizer.real_dp_process_group[group])
            optimizer.parallel_partitioned_bit16_groups[group][rank].data.copy_(flat.data)
        all_gather_dp_groups(
            groups_flat=optimizer.bit16_groups_flat,
            partitioned_param_groups=optimizer.parallel_partitioned_bit16_groups,
            dp_process_group=optimizer.real_dp_process_group,
            start_alignment_factor=optimizer.nccl_start_alignment_factor,
            allgather_bucket_size=optimizer.allgather_bucket_size,
        )
