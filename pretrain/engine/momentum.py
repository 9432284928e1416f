"""Momentum networks (MoCo's key encoder, DINO's teacher): an average of a network over training, in fp32 shards.

DeepSpeed keeps no fp32 partition of parameters without gradients, and a bf16 average never changes: at a momentum of
0.996 a step is below its rounding. So each rank keeps 1/N of every weight of the average in fp32, the same slice that
ZeRO-3 gives it of the trained weight: an update needs no communication. A forward gathers the weights of one unit at a
time and drops them afterwards.
"""

import copy
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pretrain import distributed
from pretrain.engine.sharding import Piece, range_of, shard_of
from pretrain.engine.zero import ZeroEngine, move_batch_norms
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.unit import Unit


class MomentumNetwork:
    """An average of ``network``, which starts as its copy and never has gradients.

    Args:
        network: the trained one, with all its weights on this rank (before ZeRO partitions them).

    Attributes:
        module: the averaged network; its weights exist during its forward only.
        shards: this rank's fp32 slice of each weight, by name.
    """

    def __init__(self, network: nn.Module) -> None:
        self.module = copy.deepcopy(network).requires_grad_(False).to(distributed.device()).train()
        for norm in grouped_batch_norms(self.module):
            norm.count_without_grad = True
        self._parameters = dict(self.module.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        self.shards = {name: shard_of(parameter.detach()) for name, parameter in self._parameters.items()}
        for unit, names in _units(self.module):
            unit.register_forward_pre_hook(lambda *_, names=names: self._gather(names))
            unit.register_forward_hook(lambda *_, names=names: self._drop(names))
            self._drop(names)

    @torch.no_grad()
    def __call__(self, engine: ZeroEngine, *inputs: object) -> Tensor:
        """Call the averaged network under the engine's precision; all ranks must call it equally often."""
        with engine.forward_context():
            return self.module(*inputs)

    @contextmanager
    def evaluating(self) -> Generator[None, None, None]:
        """Let batch norms use their running statistics."""
        self.module.eval()
        try:
            yield
        finally:
            self.module.train()

    @torch.no_grad()
    def update(self, engine: ZeroEngine, momentum: float) -> None:
        """Set average = momentum * average + (1 - momentum) * weights; batch norms update statistics of their own."""
        trained = dict(engine.module.named_parameters())
        for name, shard in self.shards.items():
            shard.lerp_(engine.shard_of(trained[name]), 1 - momentum)
        move_batch_norms(self.module)

    def pieces(self) -> dict[str, Piece]:
        """Return this rank's pieces of the weights, views of the shards without padding, and (rank 0) the buffers."""
        pieces = {}
        for name, shard in self.shards.items():
            start, count = range_of(self._shapes[name].numel())
            pieces[name] = Piece(start, shard[:count])
        if distributed.is_main():
            pieces |= {name: Piece(0, buffer.detach().flatten()) for name, buffer in self.module.named_buffers()}
        return {name: piece for name, piece in pieces.items() if len(piece.values)}

    @property
    def nbytes(self) -> int:
        """Bytes of all ranks' fp32 weights and the buffers."""
        return 4 * sum(shape.numel() for shape in self._shapes.values()) + sum(b.nbytes for b in self.module.buffers())

    def tensor_names(self) -> list[str]:
        """List the names of all weights and buffers."""
        return [*self.shards, *(name for name, _ in self.module.named_buffers())]

    @torch.no_grad()
    def load(self, read: Callable[[str, int, int], Tensor]) -> None:
        """Set this rank's pieces of the weights, and the buffers.

        Args:
            read: from a tensor's name, first element and number of elements to the elements, flat.
        """
        for name, shard in self.shards.items():
            start, count = range_of(self._shapes[name].numel())
            shard[:count].copy_(read(name, start, count))
        for name, buffer in self.module.named_buffers():
            buffer.copy_(read(name, 0, buffer.numel()).view(buffer.shape))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole weight or buffer."""
        return tuple(self._shapes[name] if name in self._shapes else dict(self.module.named_buffers())[name].shape)

    def _gather(self, names: list[str]) -> None:
        """Gather the weights of a unit in one collective."""
        world = distributed.world_size()
        sizes = [self.shards[name].numel() for name in names]
        own_shards = torch.cat([self.shards[name] for name in names])
        everyone = distributed.all_gather(own_shards).view(world, -1)
        for name, slices in zip(names, everyone.split(sizes, 1), strict=True):
            shape = self._shapes[name]
            self._parameters[name].data = slices.reshape(-1)[: shape.numel()].view(shape)

    def _drop(self, names: list[str]) -> None:
        for name in names:
            self._parameters[name].data = self.shards[name].new_empty(0)


def _units(module: nn.Module, prefix: str = "") -> Iterator[tuple[nn.Module, list[str]]]:
    """Yield the modules that gather weights, each with their names: all of a unit, else those the module owns."""
    is_unit = isinstance(module, Unit)
    names = [prefix + name for name, _ in module.named_parameters(recurse=is_unit)]
    if names:
        yield module, names
    if not is_unit:
        for name, child in module.named_children():
            yield from _units(child, f"{prefix}{name}.")
