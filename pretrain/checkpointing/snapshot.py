"""Copies of a training's state on the host, from which a checkpoint is written while the training continues."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain import distributed
from pretrain.checkpointing.layout import Layout, TensorSpec
from pretrain.checkpointing.random_state import random_state
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.sharding import Piece
from pretrain.engine.zero import ZeroEngine
from pretrain.engine.zero_state import local_state, optimizer_record, parameter_shapes

BLOCK = 64 << 20

Pieces = dict[str, dict[str, Piece]]
"""Pieces by kind of file (``weights``, ``optimizer``, ``teacher``, ``random``) and name."""


@dataclass(frozen=True)
class Snapshot:
    """This rank's share of a state, on the host.

    Attributes:
        pieces: valid until the next snapshot, which reuses their memory.
        layouts: of the files, by kind.
        state: JSON for plain torch: ``adam_step``, updates that Adam has made; ``optimizer``, its parameter groups by
            name; ``buffers_of_data``, those that a state dict leaves out.
    """

    pieces: Pieces
    layouts: dict[str, Layout]
    state: dict[str, Any]


class Arena:
    """Host memory in blocks of `BLOCK` bytes: torch rounds each pinned allocation up to a power of two."""

    def __init__(self) -> None:
        self._block, self._used = torch.empty(0, dtype=torch.uint8), 0

    def take(self, numel: int, dtype: torch.dtype, pinned: bool) -> Tensor:
        """Return an uninitialized tensor (numel,); pinned or not, the same at each call."""
        size = numel * dtype.itemsize
        begin = -(-self._used // 64) * 64
        if begin + size > len(self._block):
            self._block, begin = torch.empty(max(size, BLOCK), dtype=torch.uint8, pin_memory=pinned), 0
        self._used = begin + size
        return self._block[begin : begin + size].view(dtype)


class SnapshotBuffers:
    """Takes snapshots of a training into host memory that is allocated once; pinned if the state is on a GPU.

    Args:
        engine, momentum: whose state is copied.
    """

    def __init__(self, engine: ZeroEngine, momentum: MomentumNetwork | None) -> None:
        self._engine, self._momentum = engine, momentum
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._arena = Arena()
        self._layouts: dict[str, Layout] | None = None

    def take(self) -> Snapshot:
        """Copy this rank's share of the state; every rank must call it. The training may go on when it returns."""
        state = local_state(self._engine)
        kinds: Pieces = {"weights": state.weights, "optimizer": state.moments}
        if self._momentum is not None:
            kinds["teacher"] = self._momentum.pieces()
        layouts = self._layouts = self._layouts or {kind: self._layout(kind, kinds[kind]) for kind in kinds}
        copies = {
            kind: {name: self._copy(kind, name, piece, layouts[kind].specs[name]) for name, piece in pieces.items()}
            for kind, pieces in kinds.items()
        }
        prefix = f"{distributed.rank():05d}-of-{distributed.world_size():05d}"
        copies["random"] = {f"{prefix}.{name}": Piece(0, value) for name, value in random_state().items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies to pinned memory are asynchronous
        recorded = {
            "adam_step": state.adam_step,
            "optimizer": optimizer_record(self._engine),
            "buffers_of_data": self._buffers_of_data,
        }
        return Snapshot(copies, {**layouts, "random": _random_layout(copies["random"])}, recorded)

    def _copy(self, kind: str, name: str, piece: Piece, spec: TensorSpec) -> Piece:
        if (kind, name) not in self._buffers:
            self._buffers[kind, name] = self._arena.take(len(piece.values), spec.dtype, pinned=piece.values.is_cuda)
        return Piece(piece.start, self._buffers[kind, name].copy_(piece.values, non_blocking=True))

    def _layout(self, kind: str, pieces: dict[str, Piece]) -> Layout:
        """Learn from all ranks how they divide the tensors of a kind; this doesn't change during a training."""
        specs = self._specs[kind]
        numbers = {name: number for number, name in enumerate(specs)}
        rows = [(numbers[name], piece.start, len(piece.values)) for name, piece in pieces.items()]
        return Layout(kind, specs, distributed.gather_objects(np.array(sorted(rows), np.int64).reshape(-1, 3)))

    @cached_property
    def _buffers_of_data(self) -> list[str]:
        module = self._engine.module
        in_state_dict = module.state_dict().keys()
        return [name for name, _ in module.named_buffers() if name not in in_state_dict]

    @cached_property
    def _specs(self) -> dict[str, dict[str, TensorSpec]]:
        engine, momentum = self._engine, self._momentum
        shapes, trained = parameter_shapes(engine), set(engine.names)
        specs = {
            "weights": _fp32(shapes) | _buffers(engine.module),
            "optimizer": _fp32(
                {
                    f"{name}/{moment}": shape
                    for name, shape in shapes.items()
                    if name in trained
                    for moment in engine.optimizer_state.moments
                }
            ),
        }
        if momentum is not None:
            specs["teacher"] = _fp32({name: momentum.shape(name) for name in momentum.shards})
            specs["teacher"] |= _buffers(momentum.module)
        return specs


def _fp32(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}


def _buffers(module: torch.nn.Module) -> dict[str, TensorSpec]:
    return {name: TensorSpec(buffer.dtype, tuple(buffer.shape)) for name, buffer in module.named_buffers()}


def _random_layout(own: dict[str, Piece]) -> Layout:
    """Return the layout of one file with the generators of all ranks, whose states have the same sizes."""
    world, tensors = distributed.world_size(), [(name.partition(".")[2], piece) for name, piece in own.items()]
    specs = {
        f"{rank:05d}-of-{world:05d}.{name}": TensorSpec(piece.values.dtype, tuple(piece.values.shape))
        for rank in range(world)
        for name, piece in tensors
    }
    rows = [(number, 0, piece.values.numel()) for number, (_, piece) in enumerate(tensors)]
    shift = np.array([len(rows), 0, 0])
    return Layout("random", specs, [np.array(rows, np.int64) + rank * shift for rank in range(world)], files=1)
