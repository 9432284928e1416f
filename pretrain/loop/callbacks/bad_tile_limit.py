"""The damaged tiles of all ranks, counted together and limited."""

from collections.abc import Sequence
from pathlib import Path

from pretrain import distributed
from pretrain.console import log
from pretrain.loop.callback import Callback, Outcome
from pretrain.loop.loop import Loop
from shards.read.quarantine import Quarantine


class BadTileLimit(Callback):
    """Counts the damaged tiles that a run has replaced, and ends the run above ``data.max_bad_tiles``.

    Args:
        quarantines: of this process, one for the training data and one for each probe; each has its own budget.
        folder: run folder, where the quarantines keep their lists.
    """

    def __init__(self, quarantines: Sequence[Quarantine], folder: Path) -> None:
        self._quarantines, self._folder, self._reported = quarantines, folder, 0

    def after_step(self, loop: Loop, outcome: Outcome) -> None:
        if not loop.stopping:
            self.count()

    def scalars(self, loop: Loop) -> dict[str, float]:
        return {"bad_tiles": self.count()}

    def count(self) -> int:
        """Return how many damaged tiles all ranks have found, each counted once; every rank calls it.

        Raises:
            TooManyBadSamples: on every rank, above the budget.
        """
        total = 0
        for quarantine in self._quarantines:
            count = quarantine.loaded
            if distributed.any_rank(quarantine.found > 0):
                count = len({row for rows in distributed.gather_objects(quarantine.rows) for row in rows})
            quarantine.check(count)
            total += count
        if total > self._reported:
            log(
                f"WARNING: {total} damaged tiles so far, replaced by others of their set; "
                f"{self._folder}/quarantine-*.jsonl names them, and data.max_bad_tiles limits them"
            )
        self._reported = total
        return total
