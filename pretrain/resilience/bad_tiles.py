"""The damaged tiles of all ranks, counted together, told in one line, and limited."""

from collections.abc import Sequence
from pathlib import Path

from pretrain import distributed
from pretrain.console import log
from shards.read.quarantine import Quarantine


class BadTiles:
    """Damaged tiles that a run has replaced so far.

    Args:
        quarantines: of this process, the training data's and the probe's; each has a budget of its own.
        folder: of the run, where their lists are.
    """

    def __init__(self, quarantines: Sequence[Quarantine], folder: Path) -> None:
        self._quarantines, self._folder, self._told = quarantines, folder, 0

    def count(self) -> int:
        """How many there are on all ranks, each once; every rank calls it.

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
        if total > self._told:
            log(
                f"WARNING: {total} damaged tiles so far, replaced by others of their set; "
                f"{self._folder}/quarantine-*.jsonl names them, and data.max_bad_tiles limits them"
            )
        self._told = total
        return total
