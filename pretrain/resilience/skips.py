"""``skipped.jsonl``: steps that were not applied, why, and the tiles that they saw."""

import json
import math
from pathlib import Path

import numpy as np
from torch import Tensor

from pretrain import distributed
from pretrain.console import log
from pretrain.data.inputs import Inputs
from pretrain.resilience.guard import Verdict
from shards.files.journal import Journal


class SkipLog:
    """Every rank has one; rank 0 writes.

    Args:
        folder: of the run.
        inputs: that samples are tiles of.
    """

    def __init__(self, folder: Path, inputs: Inputs) -> None:
        self._journal, self._inputs = Journal(folder / "skipped.jsonl"), inputs

    def record(self, step: int, verdict: Verdict, losses: Tensor, seen: list[np.ndarray]) -> None:
        """Write down a step; every rank calls it.

        Args:
            losses: of this rank's micro batches.
            seen: their sample numbers.
        """
        batches = [
            {
                "rank": distributed.rank(),
                "loss": loss if math.isfinite(loss) else str(loss),
                "tiles": self._keys(samples),
            }
            for loss, samples in zip(losses.tolist(), seen, strict=True)
        ]
        everyone = [one for part in distributed.gather_objects(batches) for one in part]
        suspects = [one for one in everyone if isinstance(one["loss"], str)] or everyone
        if distributed.is_main():
            line = {"step": step, "reason": verdict.reason, "batches": suspects}
            self._journal.append((json.dumps(line) + "\n").encode())
        log(f"WARNING: step {step} skipped: {verdict.reason}; its tiles are in {self._journal.path}")

    def _keys(self, samples: np.ndarray) -> list[str]:
        return [self._inputs.reader.key(int(row)) for row in self._inputs.plan.tiles(samples)]
