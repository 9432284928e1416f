"""Which samples every step trained on, in JSON lines, one file a rank: proof that none was seen twice or never."""

import json
from pathlib import Path

import numpy as np

from pretrain import distributed
from pretrain.metrics.telemetry import drop_after
from shards.files.journal import BestEffort, Journal


class SampleLog:
    """Writer of ``samples-RANK.jsonl``; every rank makes one.

    Args:
        folder: of the run.
        first_step: lines of later steps, left by a run that died after its last checkpoint, are dropped, also those of
            ranks that this run doesn't have.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        if distributed.is_main():
            for path in sorted(folder.glob("samples-*.jsonl")):
                with BestEffort(path):
                    drop_after(path, first_step)
        distributed.barrier()
        self._file = Journal(folder / f"samples-{distributed.rank():05d}.jsonl")

    def record(self, step: int, samples: np.ndarray, tiles: np.ndarray) -> None:
        """What this rank's step ending at ``step`` trained on: sample numbers (B,), and their (first) tiles' rows."""
        line = {"step": step, "samples": samples.tolist(), "tiles": tiles.tolist()}
        self._file.append((json.dumps(line) + "\n").encode())
