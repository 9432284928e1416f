"""What a run saves and goes back to: checkpoints with everything that a resume needs, and the checks after a load."""

import math
import time
from pathlib import Path
from typing import Any

from pretrain import distributed
from pretrain.checkpointing.checkpoint import (
    CheckpointError,
    load_checkpoint,
    newest_verified,
    prune,
    save_checkpoint,
    step_of,
)
from pretrain.checkpointing.reference_loss import loss_of
from pretrain.config import PretrainConfig
from pretrain.console import log
from pretrain.data.inputs import Inputs
from pretrain.engine.zero import ZeroEngine
from pretrain.engine.zero_state import state_bytes
from pretrain.objectives.objective import Objective
from pretrain.resilience.guard import Diverged, Guard
from pretrain.weights.export import code_version

SAME_LOSS = {"fp32": 1e-4, "autocast": 5e-3, "bf16": 5e-3}
"""How far the loss of fixed tiles may be, relative, from what it was when the checkpoint was saved."""


class CheckpointManager:
    """A run's checkpoints; every rank calls every method.

    Args:
        config: of the run.
        guard: saved, and put back, with the weights.
    """

    def __init__(
        self, config: PretrainConfig, engine: ZeroEngine, objective: Objective, inputs: Inputs, guard: Guard
    ) -> None:
        self.config, self.engine, self.objective = config, engine, objective
        self.inputs, self.guard = inputs, guard
        self.folder = Path(config.run.dir) / "checkpoints"
        self._newest: int | None = None
        self._lineage = {} if objective.initial is None else objective.initial.lineage
        self._went_back_to: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of one checkpoint, but for its small files."""
        momentum = self.objective.momentum
        return state_bytes(self.engine) + (0 if momentum is None else momentum.nbytes)

    def save(self, step: int, samples_seen: int) -> float | None:
        """Save this step, unless it was saved or loaded by this process already. Returns the seconds that it took.

        Raises:
            CheckpointNotWritten: a disk is full; the checkpoint before is whole.
        Diverged: the weights, or what they compute, are not finite.
        """
        if self._newest == step:
            return None
        begin, manifest = time.monotonic(), self.inputs.manifest
        fixed_loss, fixed_rows = self._fixed_loss()
        if distributed.any_rank(not math.isfinite(fixed_loss)):
            raise Diverged(
                f"{self.folder.parent}: diverged by step {step}, which isn't saved: the loss of a few fixed tiles is "
                f"{fixed_loss}; checkpoints before it are untouched: lower optim.lr"
            )
        state = {
            "step": step,
            "samples_seen": samples_seen,
            "guard": self.guard.state(),
            "fixed_loss": fixed_loss,
            "fixed_rows": fixed_rows,
            "config": self.config.model_dump(mode="json"),
            "world_size": distributed.world_size(),
            "version": code_version(),
            "init": self._lineage,
            "data": {
                "content_hash": self.inputs.plan.dataset,
                "held_out": self.inputs.held_out_hash,
                "sensor": manifest.sensor,
                "wavelength_nm": manifest.wavelength_nm,
                "fwhm_nm": manifest.fwhm_nm,
                "mu": manifest.mean,
                "sigma": manifest.std,
            },
        }
        path = save_checkpoint(self.engine, self.folder, state, self.objective.momentum)
        if distributed.is_main():
            prune(self.folder, self.config.checkpoint.keep, self.config.checkpoint.keep_every)
        self._newest, self._went_back_to = step, None
        seconds = time.monotonic() - begin
        log(f"saved {path} in {seconds:.1f} s")
        return seconds

    def resume(self, path: Path | None) -> tuple[int, int]:
        """Continue from a checkpoint of `find_resume_point`: (steps taken, samples seen), (0, 0) in a new run.

        Raises:
            CheckpointError: it can't be continued.
        """
        if path is None:
            return 0, 0
        state = load_checkpoint(self.engine, path, self.objective.momentum)
        self.guard.load(state["guard"])
        self._lineage = state.get("init") or {}
        self._newest = int(state["step"])
        self._check_fixed_loss(path, state)
        log(f"resumed from {path}, saved by {state['world_size']} processes")
        return self._newest, int(state["samples_seen"])

    def rollback(self, step: int) -> None:
        """Take the weights of the newest whole checkpoint (the second time in a row: of the one before it).

        The order goes on where it is: after the same samples, the same weights would come to the same end.

        Raises:
            Diverged: there is none left.
        """
        patience = self.config.guard.patience
        path, _ = newest_verified(self.folder, self._went_back_to)
        if path is None:
            raise Diverged(
                f"{self.folder.parent}: diverged at step {step}: {patience} steps in a row were skipped, and there is "
                "no earlier checkpoint to go back to: lower optim.lr, or look at skipped.jsonl"
            )
        log(f"WARNING: {patience} steps in a row were skipped: back to the weights of {path}; the order goes on")
        state = load_checkpoint(self.engine, path, self.objective.momentum)
        self._check_fixed_loss(path, state)
        self.guard.rollback(state["guard"])
        self._went_back_to = step_of(path)

    def _fixed_loss(self) -> tuple[float, list[int]]:
        return loss_of(self.objective, self.engine, self.inputs, self.config.model.bn_group)

    def _check_fixed_loss(self, path: Path, state: dict[str, Any]) -> None:
        """The loaded engine computes what the saved one did, on fixed tiles; unless data or precision were changed."""
        accepted = set(self.config.checkpoint.accept)
        same_precision = state["config"]["engine"]["precision"] == self.config.engine.precision
        if not same_precision or accepted & {"dataset", "model", "objective", "run.seed", "data.holdout"}:
            return
        (loss, rows), saved = self._fixed_loss(), state["fixed_loss"]
        if distributed.any_rank(rows != state.get("fixed_rows", rows)):
            log(f"WARNING: {path}: a tile of its fixed loss is damaged by now, so that this loss can't be compared")
            return
        wrong = not math.isclose(loss, saved, rel_tol=SAME_LOSS[self.config.engine.precision])
        if distributed.any_rank(wrong):
            raise CheckpointError(
                f"{path}: after loading, the loss of fixed tiles is {loss:.6f}, it was {saved:.6f} when saved: "
                "shards, model code or DeepSpeed are not what they were"
            )
