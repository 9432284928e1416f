"""Quarantine of bad tiles, with a budget and with substitutes that are the same for every run and rank."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from shards.errors import ShardError, UnreachableError
from shards.files.journal import Journal
from shards.files.untrusted import read_json_value
from shards.order.random_bits import fold_in, random_bits


class TooManyBadSamples(ShardError):
    """The budget of bad tiles is exceeded."""

    exit_code = 1


class NoneLeft(ShardError):
    """Every tile of a set is bad, so there is no substitute."""


class Quarantine:
    """The bad tiles of a run.

    A substitute depends only on the bad row, not on history or rank, so a run resumed on other processes trains on the
    same tiles. It is drawn from the same set as the bad row, so held-out tiles are never trained on and training tiles
    never evaluated. Bad rows are stored as JSON lines, one file per process, and loaded at the next start: a tile that
    failed once stays excluded even if its storage recovers. More tiles than the budget have ended the run: the shards
    may have been copied or packed again since, so all of them are read again.

    Args:
        rows: int64, the training rows.
        dataset: hash that keys the substitutes.
        budget: maximum number of bad tiles; one more is an error.
        folder: folder of the lists.
        rank: rank of this process; names its list.
        held_out: int64, the rows for evaluation.
        first_rows: number of the first row of each dataset, ascending, if the rows are of several: a substitute is then
            of the same dataset as the bad row.

    Attributes:
        loaded: number of bad tiles found by earlier runs in this folder.
    """

    def __init__(
        self,
        rows: np.ndarray,
        dataset: str,
        budget: int,
        folder: Path,
        rank: int,
        held_out: np.ndarray | None = None,
        first_rows: Sequence[int] = (0,),
    ) -> None:
        self._rows, self._budget, self._first_rows = rows, budget, np.asarray(first_rows)
        self._held_out = np.empty(0, dtype=np.int64) if held_out is None else held_out
        self._key = fold_in(dataset, "substitute")
        self._file = Journal(folder / f"quarantine-{rank:05d}.jsonl")
        self._lock = threading.Lock()
        self._bad: dict[int, str] = {}
        for path in sorted(folder.glob("quarantine-*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._load(line, dataset)
        if len(self._bad) > budget:
            self._bad.clear()
        self._dataset = dataset
        self.loaded = len(self._bad)

    def __contains__(self, row: int) -> bool:
        return row in self._bad

    @property
    def found(self) -> int:
        """Number of bad tiles that this process has found since its start."""
        return len(self._bad) - self.loaded

    @property
    def rows(self) -> list[int]:
        """Bad rows known to this process, ascending."""
        return sorted(self._bad)

    def add(self, row: int, key: str, reason: str) -> None:
        """Add a tile to the quarantine; raises TooManyBadSamples above the budget."""
        with self._lock:
            if row in self._bad:
                return
            self._bad[row] = reason
            line = {"dataset": self._dataset, "row": row, "key": key, "reason": reason}
            self._file.append((json.dumps(line) + "\n").encode())
            self.check(len(self._bad), f"{reason}; ")

    def check(self, count: int, reason: str = "") -> None:
        """Raise TooManyBadSamples if ``count``, the bad tiles of all processes, exceeds the budget."""
        if count > self._budget:
            raise TooManyBadSamples(
                f"{reason}{count} bad tiles so far, but 'data.max_bad_tiles' allows {self._budget}: "
                "run `python -m shards verify` on the shards and copy or pack the damaged ones again"
            )

    def substitute(self, row: int, attempt: int) -> int:
        """Return the substitute for a bad row, drawn independently for each attempt (1, 2, ...).

        Raises:
            NoneLeft: if all rows of its set are bad.
        """
        pool = self._same_dataset(row, self._held_out if np.isin(row, self._held_out) else self._rows)
        if len(self._bad) >= len(pool) and np.isin(pool, self.rows).all():
            raise NoneLeft(
                f"{self._bad[row]}; all {len(pool)} tiles that could replace it are damaged, too: "
                "run `python -m shards verify` on the shards and copy or pack them again"
            )
        draw = random_bits(fold_in(self._key, row), np.asarray([attempt]))[0]
        return int(pool[int(draw % np.uint64(len(pool)))])

    def _same_dataset(self, row: int, pool: np.ndarray) -> np.ndarray:
        """Return those rows of a set, ascending, that are of the same dataset as ``row``."""
        after = np.searchsorted(self._first_rows, row, side="right")
        begin, end = np.append(self._first_rows, np.iinfo(np.int64).max)[after - 1 : after + 1]
        return pool[slice(*np.searchsorted(pool, [begin, end]))]

    def _load(self, line: str, dataset: str) -> None:
        try:
            entry = read_json_value(line)
            if entry["dataset"] == dataset:
                self._bad[int(entry["row"])] = str(entry["reason"])
        except (ValueError, KeyError, TypeError, OverflowError):
            pass  # an incomplete line of a killed process: the tile will fail again


def read_or_replace(
    row: int, read: Callable[[int], None], key: Callable[[int], str], quarantine: Quarantine | None
) -> int:
    """Read a tile, or a substitute if it is bad, and return the row that was read.

    Args:
        read: reads the tile of a row into its place.
        key: returns the sample key of a row.
        quarantine: records bad tiles and provides substitutes; without it a bad tile is an error.

    Raises:
        UnreachableError, ShardError: like ``read``.
    """
    if quarantine is None:
        read(row)
        return row
    attempt, requested = 0, row
    while True:
        if row not in quarantine:
            try:
                read(row)
                return row
            except UnreachableError:
                raise  # the tile itself may be intact
            except ShardError as error:
                quarantine.add(row, key(row), str(error))
        attempt += 1
        row = quarantine.substitute(requested, attempt)


def read_all(
    rows: Sequence[int] | np.ndarray,
    read: Callable[..., None],
    targets: Sequence[np.ndarray],
    pool: Executor | None,
    key: Callable[[int], str],
    quarantine: Quarantine | None,
) -> list[int]:
    """Read tiles, or substitutes of bad ones, and return the rows that were read.

    Args:
        read: reads the tile of a row into its part of each target.
        targets: arrays of len(rows) parts.
        pool: threads that read; None for the calling one.
        key, quarantine: as in `read_or_replace`, like the errors.
    """

    def read_one(row: int, *parts: np.ndarray) -> int:
        return read_or_replace(int(row), lambda row: read(row, *parts), key, quarantine)

    run = map if pool is None or len(rows) == 1 else pool.map
    return list(run(read_one, rows, *targets))
