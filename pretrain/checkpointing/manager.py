"""The checkpoints of a training: saving, pruning, loading and rolling back."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpointing.checkpoint import begin_checkpoint, load_checkpoint
from pretrain.checkpointing.folders import newest_verified, prune, step_of
from pretrain.checkpointing.local_copies import LocalCopies
from pretrain.checkpointing.snapshot import SnapshotBuffers
from pretrain.checkpointing.writer import CheckpointWriter
from pretrain.console import log
from pretrain.engine.momentum import MomentumNetwork
from pretrain.engine.zero import ZeroEngine
from pretrain.engine.zero_state import state_bytes


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        seconds: from the beginning of the save until all ranks knew that it is complete.
        waited: seconds of these in which the training waited.
    """

    path: Path
    seconds: float
    waited: float


class CheckpointManager:
    """A training's checkpoints; every rank calls every method.

    A save is in flight from `begin` to `finish`; there is one at most. Whatever needs the checkpoints of a training
    finishes it first.

    Args:
        folder: of checkpoints.
        engine: whose weights, moments and random generators are saved.
        momentum: the momentum network that belongs to the engine's weights, if there is one.
        keep: checkpoints that are kept, the newest ones.
        keep_every: checkpoints at multiples of this step are kept for good; 0 for none.
        copies: of the newest one, on the nodes' own disks; None for none.
    """

    def __init__(
        self,
        folder: Path,
        engine: ZeroEngine,
        momentum: MomentumNetwork | None = None,
        keep: int = 2,
        keep_every: int = 0,
        copies: LocalCopies | None = None,
    ) -> None:
        self.folder, self.engine, self.momentum = folder, engine, momentum
        self.keep, self.keep_every, self._copies = keep, keep_every, copies
        self._buffers = SnapshotBuffers(engine, momentum)
        self._writer: CheckpointWriter | None = None
        self._began = self._waited = 0.0
        self._rolled_back_to: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of one checkpoint without its small files."""
        return state_bytes(self.engine) + (0 if self.momentum is None else self.momentum.nbytes)

    def begin(self, state: dict[str, Any], check: Callable[[], None] = lambda: None) -> None:
        """Copy the state of the step ``state["step"]`` and write it in the background.

        Args:
            check: see `begin_checkpoint`.
        """
        assert self._writer is None, "a save is in flight: finish it first"
        self._began = time.monotonic()
        self._writer = begin_checkpoint(self._buffers, self.folder, state, check, self._prune)
        self._waited = time.monotonic() - self._began

    @property
    def in_flight(self) -> bool:
        """Whether a save has begun and is not finished; the same on all ranks."""
        return self._writer is not None

    @property
    def is_written(self) -> bool:
        """Whether this rank's part of a save in flight is done or has failed."""
        return self._writer is not None and self._writer.has_ended

    def finish(self) -> Saved:
        """Wait for the save in flight; the checkpoints that are not kept are removed with it.

        Raises:
            CheckpointNotWritten: the disk is full; the checkpoint before is complete.
            NonFiniteState: weights, moments or statistics are NaN or infinite; nothing is written.
        """
        writer, self._writer = self._writer, None
        assert writer is not None, "no save is in flight"
        begin = time.monotonic()
        writer.finish()
        self._rolled_back_to = None
        if self._copies is not None:
            self._copies.keep(writer.final)
        end = time.monotonic()
        return Saved(writer.final, end - self._began, self._waited + end - begin)

    def _prune(self) -> None:
        prune(self.folder, self.keep, self.keep_every)

    def save(self, state: dict[str, Any], check: Callable[[], None] = lambda: None) -> Path:
        """Write a checkpoint and wait for it; see `begin` and `finish`."""
        self.begin(state, check)
        return self.finish().path

    def settle(self) -> None:
        """Let the save in flight end, and the copies of the last one, for a training that ends; no collective."""
        if self._writer is not None:
            self._writer.join()
        if self._copies is not None:
            self._copies.join()

    def load(self, path: Path) -> dict[str, Any]:
        """Put a checkpoint into the engine and return its state.

        Raises:
            CheckpointError: it belongs to another model, or the engine doesn't hold what was loaded.
        """
        if self._copies is None:
            return load_checkpoint(self.engine, path, self.momentum)
        return load_checkpoint(self.engine, path, self.momentum, self._copies.find)

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, None if there are none; damaged newer ones are a warning each.

        Raises:
            CheckpointError: there are checkpoints, and none is complete.
        """
        path, damaged = newest_verified(self.folder, copies=self._copies)
        for problem in damaged.values():
            log(f"WARNING: passed over a damaged checkpoint: {problem}")
        return path

    def earlier(self) -> Path | None:
        """Return the newest complete checkpoint, or when called again before a save, the one before; None if none."""
        path, _ = newest_verified(self.folder, self._rolled_back_to, self._copies)
        self._rolled_back_to = None if path is None else step_of(path)
        return path
