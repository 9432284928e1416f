"""The checkpoints of a training: saving, pruning, loading and rolling back."""

from pathlib import Path
from typing import Any

from pretrain import distributed
from pretrain.checkpointing.checkpoint import load_checkpoint, newest_verified, prune, save_checkpoint, step_of
from pretrain.console import log
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.zero import ZeroEngine
from pretrain.engine.zero_state import state_bytes


class CheckpointManager:
    """A training's checkpoints; every rank calls every method.

    Args:
        folder: of checkpoints.
        engine: whose weights, moments and random generators are saved.
        momentum: the momentum network that belongs to the engine's weights, if there is one.
        keep: checkpoints that are kept, the newest ones.
        keep_every: checkpoints at multiples of this step are kept for good; 0 for none.
    """

    def __init__(
        self,
        folder: Path,
        engine: ZeroEngine,
        momentum: MomentumNetwork | None = None,
        keep: int = 2,
        keep_every: int = 0,
    ) -> None:
        self.folder, self.engine, self.momentum = folder, engine, momentum
        self.keep, self.keep_every = keep, keep_every
        self._rolled_back_to: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of one checkpoint without its small files."""
        return state_bytes(self.engine) + (0 if self.momentum is None else self.momentum.nbytes)

    def save(self, state: dict[str, Any]) -> Path:
        """Write a checkpoint of the step ``state["step"]`` and remove those that are not kept.

        Raises:
            CheckpointNotWritten: the disk is full; the checkpoint before is complete.
            NonFiniteState: weights, moments or statistics are NaN or infinite; nothing is written.
        """
        path = save_checkpoint(self.engine, self.folder, state, self.momentum)
        if distributed.is_main():
            prune(self.folder, self.keep, self.keep_every)
        self._rolled_back_to = None
        return path

    def load(self, path: Path) -> dict[str, Any]:
        """Put a checkpoint into the engine and return its state.

        Raises:
            CheckpointError: it belongs to another model, or the engine doesn't hold what was loaded.
        """
        return load_checkpoint(self.engine, path, self.momentum)

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, None if there are none; damaged newer ones are a warning each.

        Raises:
            CheckpointError: there are checkpoints, and none is complete.
        """
        path, damaged = newest_verified(self.folder)
        for problem in damaged.values():
            log(f"WARNING: passed over a damaged checkpoint: {problem}")
        return path

    def earlier(self) -> Path | None:
        """Return the newest complete checkpoint, or when called again before a save, the one before; None if none."""
        path, _ = newest_verified(self.folder, self._rolled_back_to)
        self._rolled_back_to = None if path is None else step_of(path)
        return path
