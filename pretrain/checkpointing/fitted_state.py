"""A checkpoint's weights and moments, fitted to an engine whose image size or optimizer differs from what was saved."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.checkpointing.tensor_files import CheckpointError, TensorFiles
from pretrain.console import log
from pretrain.engine.sharding import Piece
from pretrain.engine.zero import ZeroEngine
from pretrain.engine.zero_state import parameter_shapes
from pretrain.models.patches import are_positions, fit_positions

Shape = tuple[int, ...]


class FittedState:
    """Weights and moments by name, in the shapes that the engine needs.

    Args:
        state: JSON state of the checkpoint.
        path: folder of the checkpoint.

    Attributes:
        reshaped: position embeddings that are interpolated to the grid of another image size.
        renewed: buffers that differ and follow from the data, such as statistics of bands: the engine keeps its own.
        adam_step: updates that Adam has made; 0 if its moments are new.

    Raises:
        CheckpointError: the checkpoint belongs to another model: weights are missing or have other shapes.
    """

    def __init__(
        self, engine: ZeroEngine, weights: TensorFiles, moments: TensorFiles, state: dict[str, Any], path: Path
    ) -> None:
        self._engine, self._weights, self._moments = engine, weights, moments
        self._parameters = parameter_shapes(engine)
        buffers = {name: tuple(buffer.shape) for name, buffer in engine.module.named_buffers()}
        self._shapes: dict[str, Shape] = self._parameters | buffers
        self._of_data = buffers.keys() - engine.module.state_dict().keys()  # not persistent
        self._check_model("config" in state, path)
        self.renewed = [name for name in self._of_data & weights.names if not self._is_equal(name)]
        self.reshaped = [
            name
            for name, shape in self._shapes.items()
            if name in weights.names - self._of_data and weights.shape(name) != shape
        ]
        for name in self.reshaped:
            log(f"position embeddings interpolated: {name}: {weights.shape(name)} to {self._shapes[name]}")
        needed = {f"{name}/{moment}" for name in engine.names for moment in engine.optimizer_state.moments}
        self._fresh = not needed & moments.names
        if self._fresh and needed:
            log("the checkpoint belongs to another optimizer: moments start at zero")
        elif needed - moments.names:
            raise CheckpointError(f"{path}: {min(needed - moments.names)} is missing; use another checkpoint")
        self.adam_step = 0.0 if self._fresh else float(state["adam_step"])

    def weight(self, name: str) -> Tensor:
        """Return a whole parameter or buffer."""
        if name in self.renewed:
            return self._engine.module.get_buffer(name).detach().cpu().clone()
        return fit_positions(name, self._weights.get(name), self._shapes[name])

    def read_weight(self, name: str, start: int, count: int) -> Tensor:
        """Return part of a parameter, flat."""
        if name in self.reshaped:
            return self.weight(name).flatten()[start : start + count]
        return self._weights.slice(name, start, count)

    def read_moment(self, name: str, start: int, count: int) -> Tensor:
        """Return part of a moment ``parameter/moment``; zeros if it is new, or the parameter's shape has changed."""
        if self._fresh or name.rsplit("/", 1)[0] in self.reshaped:
            return torch.zeros(count)
        return self._moments.slice(name, start, count)

    def owned(self) -> dict[str, Piece]:
        """Return this rank's share of the weights, and on rank 0 the buffers, in whole tensors."""
        world, rank = distributed.world_size(), distributed.rank()
        names = [name for number, name in enumerate(self._parameters) if number % world == rank]
        names += [name for name in self._shapes if name not in self._parameters and distributed.is_main()]
        return {name: Piece(0, self.weight(name).flatten()) for name in names}

    def _check_model(self, of_pretraining: bool, path: Path) -> None:
        names, in_model = self._weights.names, self._shapes
        missing = sorted(name for name in self._parameters if name not in names)
        misshapen = [name for name in sorted(in_model) if name in names and not self._fits(name)]
        extra = sorted(names - in_model.keys())
        for wrong, what in (
            (missing, "lacks"),
            (misshapen, "has other shapes of"),
            (extra, "has, but this model lacks,"),
        ):
            if wrong:
                name = wrong[0]
                shapes = f" ({self._weights.shape(name)} there, {in_model[name]} here)" if wrong is misshapen else ""
                raise CheckpointError(
                    f"{path}: checkpoint of another model: it {what} {len(wrong)} tensors: {name}{shapes}"
                    + (_hint(wrong, path) if of_pretraining else "")
                )

    def _fits(self, name: str) -> bool:
        old, new = self._weights.shape(name), self._shapes[name]
        return old == new or name in self._of_data or are_positions(name, old, new)

    def _is_equal(self, name: str) -> bool:
        return torch.equal(self._weights.get(name), self._engine.module.get_buffer(name).cpu())


def _hint(wrong: list[str], path: Path) -> str:
    if any(name.startswith("encoder.") for name in wrong):
        return "; set the config back, or start over in another run.dir"
    return f"; set the config back, or start a new run with its encoder: another run.dir and init={path}"
