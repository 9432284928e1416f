"""Which steps were not applied, why, and the tiles that they saw, in ``skipped.jsonl``."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from pretrain import distributed
from pretrain.console import log
from pretrain.data.inputs import Inputs
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop
from shards.files.journal import Journal


class SkipLog(Callback):
    """Records every skipped step. Rank 0 writes for all ranks.

    Args:
        folder: run folder.
        inputs: that samples are drawn from.
    """

    def __init__(self, folder: Path, inputs: Inputs) -> None:
        self._journal, self._inputs = Journal(folder / "skipped.jsonl"), inputs

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        if outcome.applied:
            return
        batches = [
            {
                "rank": distributed.rank(),
                "loss": loss if math.isfinite(loss) else str(loss),
                "tiles": self._keys(samples),
            }
            for loss, samples in zip(outcome.losses.tolist(), outcome.samples, strict=True)
        ]
        everyone = [entry for part in distributed.gather_objects(batches) for entry in part]
        suspects = [entry for entry in everyone if isinstance(entry["loss"], str)] or everyone
        if distributed.is_main():
            line = {"step": loop.step, "reason": outcome.verdict.reason, "batches": suspects}
            self._journal.append((json.dumps(line) + "\n").encode())
        log(f"WARNING: step {loop.step} skipped: {outcome.verdict.reason}; its tiles are in {self._journal.path}")
        loop.log({"skipped_steps": loop.guard.skipped})

    def state(self, loop: Loop) -> dict[str, Any]:
        """Return nothing, but sync the lines of the steps that a checkpoint counts as done."""
        self._journal.sync()
        return {}

    def scalars(self, loop: Loop) -> dict[str, float]:
        return {"skipped_steps": loop.guard.skipped}

    def _keys(self, samples: np.ndarray) -> list[str]:
        return [self._inputs.reader.key(int(row)) for row in self._inputs.plan.tiles(samples)]
