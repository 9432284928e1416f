"""Which samples every step trained on, in ``samples-RANK.jsonl``: proof that none was seen twice or never."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pretrain import distributed
from pretrain.data.inputs import Inputs
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop
from pretrain.metrics.json_lines import drop_after
from shards.files.journal import BestEffort, Journal
from shards.order.mixture import MixturePlan


class SampleLog(Callback):
    """Appends a line to ``samples-RANK.jsonl`` after every step, on every rank.

    Args:
        folder: run folder.
        inputs: that samples are drawn from.
    """

    def __init__(self, folder: Path, inputs: Inputs) -> None:
        self._folder, self._inputs = folder, inputs
        self._journal = Journal(folder / f"samples-{distributed.rank():05d}.jsonl")

    def on_start(self, loop: Loop) -> None:
        """Drop lines of later steps, which a run that died after its last checkpoint has left, also of more ranks."""
        if distributed.is_main():
            for path in sorted(self._folder.glob("samples-*.jsonl")):
                with BestEffort(path):
                    drop_after(path, loop.step)
        distributed.barrier()

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        samples, plan = np.concatenate(outcome.samples), self._inputs.plan
        line = {"step": loop.step, "samples": samples.tolist(), "tiles": plan.tiles(samples).tolist()}
        if isinstance(plan, MixturePlan):
            line["sources"] = [self._inputs.sources[source].name for source in plan.sources(samples)]
        self._journal.append((json.dumps(line) + "\n").encode())

    def state(self, loop: Loop) -> dict[str, Any]:
        """Return nothing, but sync the lines of the steps that a checkpoint counts as done."""
        self._journal.sync()
        return {}
