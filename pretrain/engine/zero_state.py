"""The state of a training under DeepSpeed ZeRO, by name: out of an engine, and into one of any world size and stage.

Every rank takes part in gathering each tensor and keeps those that it owns, so a rank never holds more than its share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from pretrain import distributed
from pretrain.engine.zero import ZeroEngine


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
    """Gather every parameter and moment, each on the rank that owns it; every rank must call it."""
    adapter = engine.adapter
    if adapter.base_optimizer.state:
        adapter.link_moments()
    else:  # nothing was applied yet
        _create_moments(engine, 0.0)
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    trained = set(engine.names)
    for number, (name, parameter) in enumerate(engine.module.named_parameters()):
        is_own = number % distributed.world_size() == distributed.rank()
        full = adapter.get_weight(parameter) if name in trained else adapter.get_frozen(parameter)
        if is_own:
            weights[name] = _cpu_copy(full)
        for moment in engine.optimizer_state.moments if name in trained else ():
            value = adapter.get_moment(parameter, moment)  # collective: every rank calls it for every parameter
            if is_own:
                moments[f"{name}/{moment}"] = _cpu_copy(value)
    if distributed.is_main():
        weights |= {name: buffer.detach().cpu().clone() for name, buffer in engine.module.named_buffers()}
    states = adapter.base_optimizer.state.values()
    return OwnedState(weights, moments, max((float(state.get("step", 0)) for state in states), default=0.0))


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """XXH3-64 of all ranks' weights, each with its name, summed: the same however ranks share them."""
    own_sum = sum(_hash(name, value) for name, value in weights.items())
    return f"{sum(distributed.gather_objects(own_sum)) % 2**64:016x}"


def set_state(
    engine: ZeroEngine, weight: Callable[[str], Tensor], moment: Callable[[str], Tensor], adam_step: float
) -> None:
    """Put a state into an engine; every rank must call it.

    Args:
        weight: a parameter by its name, whole.
        moment: of the optimizer, by ``parameter/moment``, whole.
    """
    _create_moments(engine, adam_step)
    adapter, device, trained = engine.adapter, distributed.device(), set(engine.names)
    for name, parameter in engine.module.named_parameters():
        if name not in trained:
            adapter.set_frozen(parameter, weight(name))
            continue
        adapter.set_weight(parameter, weight(name).to(device))
        for kind in engine.optimizer_state.moments:
            adapter.set_moment(parameter, kind, moment(f"{name}/{kind}").to(device))
    adapter.refresh_model_copies()


def parameter_shapes(engine: ZeroEngine) -> dict[str, tuple[int, ...]]:
    """Return the shapes of whole parameters."""
    return {name: engine.adapter.shape(parameter) for name, parameter in engine.module.named_parameters()}


def state_bytes(engine: ZeroEngine) -> int:
    """Count the bytes of the whole state: fp32 weights, moments and buffers."""
    copies = 1 + len(engine.optimizer_state.moments)
    return 4 * copies * engine.parameter_count + sum(buffer.nbytes for buffer in engine.module.buffers())


def _cpu_copy(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone().contiguous()


def _hash(name: str, value: Tensor) -> int:
    content = xxhash.xxh3_64(name.encode())
    content.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.intdigest()


def _create_moments(engine: ZeroEngine, steps: float) -> None:
    """Create the moments that the optimizer creates in its first step: they must exist before they are loaded."""
    optimizer_state, state = engine.optimizer_state, engine.adapter.base_optimizer.state
    for flat in engine.adapter.flat_partitions():
        state[flat] = {moment: torch.zeros_like(flat) for moment in optimizer_state.moments}
        if optimizer_state.counts_steps:
            state[flat]["step"] = torch.tensor(steps, dtype=torch.float32, device=flat.device)
    engine.adapter.link_moments()
