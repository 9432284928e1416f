"""The loss of a few fixed tiles, saved with every checkpoint and compared after every load: proof of a correct load."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain import distributed
from pretrain.checkpointing.tensor_files import CheckpointError
from pretrain.config import PretrainConfig
from pretrain.console import log
from pretrain.data.inputs import Inputs
from pretrain.engine.zero import ZeroEngine
from pretrain.loop.callback import Callback
from pretrain.loop.loop import Loop
from pretrain.objectives.objective import Objective
from pretrain.resilience.guard import Diverged

TOLERANCE = {"fp32": 1e-4, "autocast": 5e-3, "bf16": 5e-3}
"""Relative difference between the losses at the save and after the load, by precision."""

NOT_COMPARABLE = {"dataset", "data.sources", "model", "objective", "run.seed", "data.holdout"}
"""Keys of ``checkpoint.accept`` that change the loss of the fixed tiles."""


class ReferenceLoss(Callback):
    """Saves the loss of fixed tiles with each checkpoint, and checks it whenever one is loaded.

    Raises (on every rank):
        Diverged: the loss is not finite when a checkpoint is due: none is written.
        CheckpointError: the loaded engine computes another loss than the saved one.
    """

    def __init__(self, config: PretrainConfig, objective: Objective, inputs: Inputs) -> None:
        self._config, self._objective, self._inputs = config, objective, inputs

    def state(self, loop: Loop) -> dict[str, Any]:
        loss, rows = self._compute(loop.engine)
        if distributed.any_rank(not math.isfinite(loss)):
            raise Diverged(
                f"{self._config.run.dir}: diverged by step {loop.step}, which is not saved: the loss on a few fixed "
                f"tiles is {loss}; earlier checkpoints are untouched: lower optim.lr"
            )
        return {"fixed_loss": loss, "fixed_rows": rows}

    def load_state(self, loop: Loop, state: dict[str, Any], path: Path) -> None:
        precision = self._config.engine.precision
        same_precision = state["config"]["engine"]["precision"] == precision
        if not same_precision or NOT_COMPARABLE & set(self._config.checkpoint.accept):
            return
        (loss, rows), saved = self._compute(loop.engine), state["fixed_loss"]
        if distributed.any_rank(rows != state.get("fixed_rows", rows)):
            log(f"WARNING: {path}: one of its fixed tiles has been damaged since, so their loss can't be compared")
            return
        if distributed.any_rank(not math.isclose(loss, saved, rel_tol=TOLERANCE[precision])):
            raise CheckpointError(
                f"{path}: after loading, the loss on fixed tiles is {loss:.6f}, but was {saved:.6f} when saved: "
                "shards, model code or DeepSpeed have changed"
            )

    def _compute(self, engine: ZeroEngine) -> tuple[float, list[int]]:
        """Return the mean loss on fixed views in evaluation mode, and the rows of the tiles; the same on all ranks."""
        count = self._config.model.bn_group
        tiles, rows = distributed.raise_on_all_ranks(lambda: self._inputs.always(count))
        on_device = torch.from_numpy(tiles).to(distributed.device())
        sources = torch.zeros(count, dtype=torch.int64, device=on_device.device)
        return float(self._objective.evaluate(engine, on_device, np.arange(count), sources).losses.mean()), rows
