"""The state of a training under DeepSpeed ZeRO, by name: out of an engine, and into one of any world size and stage.

A rank reads and sets what it holds: its pieces of the fp32 masters and moments, as ZeRO has divided them. Where all
ranks have a whole tensor, each takes 1/N of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.engine.sharding import Piece, own_piece
from pretrain.engine.zero import ZeroEngine

_JSON = (bool, int, float, str, tuple, NoneType)
Read = Callable[[str, int, int], Tensor]
"""From a tensor's name, first element and number of elements to the elements, flat, on the CPU."""


@dataclass(frozen=True)
class LocalState:
    """A rank's share of a training's state; most pieces are views of it.

    Attributes:
        weights: parameters, frozen ones too, and (rank 0) buffers, by name.
        moments: of the optimizer, by ``parameter/moment``.
        adam_step: updates that Adam has made; 0 under SGD.
    """

    weights: dict[str, Piece]
    moments: dict[str, Piece]
    adam_step: float


def local_state(engine: ZeroEngine) -> LocalState:
    """Return this rank's share of the state; every rank must call it, since ZeRO-3 gathers frozen weights."""
    adapter = engine.adapter
    if adapter.base_optimizer.state:
        adapter.link_moments()
    else:  # nothing was applied yet
        _create_moments(engine, 0.0)
    weights = _local_weights(engine)
    moments = {
        f"{name}/{moment}": _share(engine, adapter.moment_piece(parameter, moment))
        for name, parameter in _trained(engine)
        for moment in engine.optimizer_state.moments
    }
    states = adapter.base_optimizer.state.values()
    adam_step = max((float(state.get("step", 0)) for state in states), default=0.0)
    return LocalState(weights, {name: piece for name, piece in moments.items() if len(piece.values)}, adam_step)


def hash_local(weights: dict[str, Piece], hash_piece: Callable[[str, Piece], int]) -> int:
    """Return the sum of all ranks' pieces' hashes."""
    return sum(distributed.gather_objects(sum(hash_piece(name, piece) for name, piece in weights.items())))


def held_hash(engine: ZeroEngine, hash_piece: Callable[[str, Piece], int]) -> int:
    """Hash the weights and buffers that the engine holds; every rank must call it."""
    return hash_local(_local_weights(engine), hash_piece)


def set_state(engine: ZeroEngine, weight: Read, moment: Read, adam_step: float) -> None:
    """Put a state into an engine; every rank must call it, and reads what it needs.

    Args:
        weight: reads a parameter by its name.
        moment: reads a moment of the optimizer, by ``parameter/moment``.

    Raises:
        ForgeError: on every rank, if one can't read.
    """
    _create_moments(engine, adam_step)
    frozen = distributed.raise_on_all_ranks(lambda: _read_pieces(engine, weight, moment))
    for name, parameter in engine.module.named_parameters():
        if name in frozen:
            engine.adapter.set_frozen(parameter, frozen[name])
    engine.adapter.refresh_model_copies()


def parameter_shapes(engine: ZeroEngine) -> dict[str, tuple[int, ...]]:
    """Return the shapes of whole parameters."""
    return {name: engine.adapter.shape(parameter) for name, parameter in engine.module.named_parameters()}


def optimizer_record(engine: ZeroEngine) -> dict[str, Any]:
    """Return what plain torch needs beside the moments to go on with the optimizer, as JSON.

    Its class, whether it counts steps, and its parameter groups with the names of their parameters.
    """
    groups = zip(engine.group_names, engine.adapter.optimizer.param_groups, strict=True)
    return {
        "class": type(engine.adapter.base_optimizer).__name__,
        "counts_steps": engine.optimizer_state.counts_steps,
        "param_groups": [
            {**{key: value for key, value in group.items() if isinstance(value, _JSON)}, "params": names}
            for names, group in groups
        ],
    }


def state_bytes(engine: ZeroEngine) -> int:
    """Count the bytes of the whole state: fp32 weights, moments and buffers."""
    copies = 1 + len(engine.optimizer_state.moments)
    return 4 * copies * engine.parameter_count + sum(buffer.nbytes for buffer in engine.module.buffers())


def _trained(engine: ZeroEngine) -> list[tuple[str, torch.nn.Parameter]]:
    names = set(engine.names)
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if name in names]


def _local_weights(engine: ZeroEngine) -> dict[str, Piece]:
    adapter, trained = engine.adapter, set(engine.names)
    pieces = {}
    for name, parameter in engine.module.named_parameters():
        if name in trained:
            pieces[name] = _share(engine, adapter.weight_piece(parameter))
        else:
            pieces[name] = own_piece(adapter.get_frozen(parameter).detach())
    if distributed.is_main():
        pieces |= {name: Piece(0, buffer.detach().flatten()) for name, buffer in engine.module.named_buffers()}
    return {name: piece for name, piece in pieces.items() if len(piece.values)}


def _share(engine: ZeroEngine, held: Piece) -> Piece:
    """Return what this rank saves of what it holds: at stage 0 all ranks hold everything."""
    return held if engine.config.zero_stage else own_piece(held.values)


def _read_pieces(engine: ZeroEngine, weight: Read, moment: Read) -> dict[str, Tensor]:
    """Set this rank's pieces of trained weights and moments; return the frozen weights that this rank needs."""
    adapter = engine.adapter
    for name, parameter in _trained(engine):
        piece = adapter.weight_piece(parameter)
        if len(piece.values):
            piece.values.copy_(weight(name, piece.start, len(piece.values)))
        for kind in engine.optimizer_state.moments:
            piece = adapter.moment_piece(parameter, kind)
            if len(piece.values):
                piece.values.copy_(moment(f"{name}/{kind}", piece.start, len(piece.values)))
    trained, shapes, frozen = set(engine.names), parameter_shapes(engine), {}
    for name in shapes.keys() - trained:
        shape = torch.Size(shapes[name])
        needed = engine.config.zero_stage < 3 or distributed.is_main()  # ZeRO-3 divides rank 0's
        frozen[name] = weight(name, 0, shape.numel()).view(shape) if needed else torch.empty(0)
    return frozen


def _create_moments(engine: ZeroEngine, steps: float) -> None:
    """Create the moments that the optimizer creates in its first step: they must exist before they are loaded."""
    optimizer_state, state = engine.optimizer_state, engine.adapter.base_optimizer.state
    for flat in engine.adapter.flat_partitions():
        state[flat] = {moment: torch.zeros_like(flat) for moment in optimizer_state.moments}
        if optimizer_state.counts_steps:
            state[flat]["step"] = torch.tensor(steps, dtype=torch.float32, device=flat.device)
    engine.adapter.link_moments()
