"""Bad tiles: set aside once, replaced by a substitute that every run and rank agrees on, counted, and limited."""

import json
import threading
from pathlib import Path

import numpy as np

from shards.errors import ShardError
from shards.files.journal import Journal
from shards.files.untrusted import read_json_value
from shards.order.random_bits import fold_in, random_bits


class TooManyBadSamples(ShardError):
    """The budget of bad tiles is spent."""

    exit_code = 1


class NoneLeft(ShardError):
    """Every tile of a set is bad, so that none can stand in for another."""


class Quarantine:
    """The bad tiles of a run.

    A substitute depends on the bad row alone, never on history or rank, so a resumed run on other
    processes trains on the same tiles; it comes out of the set of the bad one, so that none that is held out is
    trained on, and none that is trained on is evaluated. Bad rows are kept in JSON lines, one file a process, and read
    back at the next start: a tile that failed once stays out even where its storage heals.

    Args:
        rows: int64, the training rows.
        dataset: hash that keys the substitutes.
        budget: bad tiles at which the run goes on; one more is an error.
        folder: for the lists.
        rank: of this process, names its own list.
        held_out: int64, the rows for evaluation.

    Attributes:
        loaded: bad tiles that earlier runs in this folder had found.
    """

    def __init__(
        self,
        rows: np.ndarray,
        dataset: str,
        budget: int,
        folder: Path,
        rank: int,
        held_out: np.ndarray | None = None,
    ) -> None:
        self._rows, self._budget = rows, budget
        self._held_out = np.empty(0, dtype=np.int64) if held_out is None else held_out
        self._key = fold_in(dataset, "substitute")
        self._file = Journal(folder / f"quarantine-{rank:05d}.jsonl")
        self._lock = threading.Lock()
        self._bad: dict[int, str] = {}
        for path in sorted(folder.glob("quarantine-*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._load(line, dataset)
        self._dataset = dataset
        self.loaded = len(self._bad)

    def __contains__(self, row: int) -> bool:
        return row in self._bad

    @property
    def found(self) -> int:
        """Bad tiles that this process has found since its start."""
        return len(self._bad) - self.loaded

    @property
    def rows(self) -> list[int]:
        """Bad rows known to this process, ascending."""
        return sorted(self._bad)

    def add(self, row: int, key: str, reason: str) -> None:
        """Set a tile aside; raises TooManyBadSamples above the budget."""
        with self._lock:
            if row in self._bad:
                return
            self._bad[row] = reason
            line = {"dataset": self._dataset, "row": row, "key": key, "reason": reason}
            self._file.append((json.dumps(line) + "\n").encode())
            self.check(len(self._bad), f"{reason}; ")

    def check(self, count: int, reason: str = "") -> None:
        """Raise TooManyBadSamples where ``count`` bad tiles, of all processes, are above the budget."""
        if count > self._budget:
            raise TooManyBadSamples(
                f"{reason}{count} bad tiles so far, 'data.max_bad_tiles' allows {self._budget}: "
                "run `python -m shards verify` on the shards and copy or pack the damaged ones again"
            )

    def substitute(self, row: int, attempt: int) -> int:
        """The row that stands in for a bad one; another for each attempt (1, 2, ...).

        Raises:
            NoneLeft: all rows of its set are bad.
        """
        pool = self._held_out if np.isin(row, self._held_out) else self._rows
        if len(self._bad) >= len(pool) and np.isin(pool, self.rows).all():
            raise NoneLeft(
                f"{self._bad[row]}; all {len(pool)} tiles that could stand in for it are damaged, too: "
                "run `python -m shards verify` on the shards and copy or pack them again"
            )
        draw = random_bits(fold_in(self._key, row), np.asarray([attempt]))[0]
        return int(pool[int(draw % np.uint64(len(pool)))])

    def _load(self, line: str, dataset: str) -> None:
        try:
            entry = read_json_value(line)
            if entry["dataset"] == dataset:
                self._bad[int(entry["row"])] = str(entry["reason"])
        except (ValueError, KeyError, TypeError, OverflowError):
            pass  # the last line of a killed process: its tile is found bad again
