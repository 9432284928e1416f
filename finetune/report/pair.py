"""`python -m finetune compare RUNS... --first ROW --second ROW`: two rows of a report, on every task that has both."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.metrics.metric import lower_is_better
from finetune.report.compare import corrected_p
from finetune.report.rows import Comparison, Row, TaskReport
from finetune.report.tables import UNDEFINED, difference, number, title
from shards.console import get_logger
from shards.errors import ConfigError

logger = get_logger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two rows of one task, tested on the same places.

    Attributes:
        comparison: their difference with its interval and p-value.
        by_place: the primary score of the first minus that of the second at each test place, averaged over seeds; where
            either is undefined, the place is left out. Its sign is turned around where lower scores are better.
        by_output: name of each class or target, and the two rows' scores.
        confused: for tasks with classes, what the first confuses more often (above 0) or less often than the second: a
            share of the pixels or tiles of each class (C, C), labels in rows; None without classes.
    """

    report: TaskReport
    comparison: Comparison
    by_place: np.ndarray
    by_output: list[tuple[str, float | None, float | None]]
    confused: np.ndarray | None

    @property
    def effect(self) -> float:
        """Cohen's d for paired samples: mean of the differences by place divided by their standard deviation (J. Cohen,
        Statistical Power Analysis for the Behavioral Sciences, 1988); NaN with fewer than two places or no spread."""
        spread = self.by_place.std(ddof=1) if len(self.by_place) > 1 else 0.0
        return float(self.by_place.mean() / spread) if spread > 0 else float("nan")

    @property
    def wins(self) -> tuple[int, int]:
        """Number of places where the first is better, and where the second is."""
        return int((self.by_place > 0).sum()), int((self.by_place < 0).sum())


def compare_rows(reports: Sequence[TaskReport], first: str, second: str) -> list[Pair]:
    """Test the row that ``first`` names against the row that ``second`` names, on each task where both exist.

    Args:
        first, second: parts of "checkpoint · protocol" as the report prints it; words may be left out between spaces.

    Raises:
        ConfigError: no task has both, or a part names several rows of a task; the message lists the rows.
    """
    found = []
    for report in reports:
        one, other = select(report, first), select(report, second)
        if one is not None and other is not None and one is not other:
            found.append((report, one, other))
    if not found:
        names = sorted({name_of(row) for report in reports for row in report.rows})
        raise ConfigError(f"no task has a row of {first!r} and another one of {second!r}; rows: {'; '.join(names)}")
    return [
        Pair(
            report,
            Comparison(one, other, report.primary, p),
            by_place(report, one, other),
            by_output(report, one, other),
            confused(report, one, other),
        )
        for (report, one, other), p in zip(found, corrected_p(found), strict=True)
    ]


def select(report: TaskReport, words: str) -> Row | None:
    """Return the row whose name has all words; None if there is none; raises ConfigError if there are several."""
    rows = [row for row in report.rows if all(word in name_of(row) for word in words.split())]
    if len(rows) > 1:
        exact = [row for row in rows if name_of(row) == words]
        if len(exact) != 1:
            names = "; ".join(map(name_of, rows))
            raise ConfigError(f"{report.title}: {words!r} names {len(rows)} rows: add words of one of: {names}")
        rows = exact
    return rows[0] if rows else None


def name_of(row: Row) -> str:
    """Return "checkpoint · protocol · share of the tiles"."""
    return f"{row.label} · {row.name} · {row.portion.name}"


def by_place(report: TaskReport, first: Row, second: Row) -> np.ndarray:
    """Return `Pair.by_place`."""
    names, numbers = np.unique(report.run.places, return_inverse=True)
    of_place = (numbers == np.arange(len(names))[:, None]).astype(float)

    def scores(row: Row) -> np.ndarray:
        return np.mean([report.resampled(result.statistics, of_place) for result in row.results], axis=0)

    differences = (scores(first) - scores(second)) * (-1 if lower_is_better(report.primary) else 1)
    return differences[np.isfinite(differences)]


def confused(report: TaskReport, first: Row, second: Row) -> np.ndarray | None:
    """Return `Pair.confused`."""

    def shares(row: Row) -> np.ndarray | None:
        found = [report.kind.confusion(result.statistics) for result in row.results]
        matrices = [matrix for matrix in found if matrix is not None]
        if not matrices:
            return None
        total = np.sum(matrices, axis=0).astype(float)
        return total / np.maximum(total.sum(1, keepdims=True), 1)

    one, other = shares(first), shares(second)
    return None if one is None or other is None else one - other


def by_output(report: TaskReport, first: Row, second: Row) -> list[tuple[str, float | None, float | None]]:
    """Return `Pair.by_output`."""
    metric, _ = report.kind.by_output
    return list(zip(report.task.outputs, first.by_output(metric), second.by_output(metric), strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("runs", nargs="+", type=Path, help="folders of evaluations, at any depth")
    for name in ("first", "second"):
        parser.add_argument(
            f"--{name}", required=True, metavar="ROW", help="words of a row's checkpoint, protocol and share of tiles"
        )


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison of each task and return the exit code: 1 if some results can't be read."""
    from finetune.report.collect import collect, find_runs, read_runs
    from finetune.report.markdown import text_table

    runs, problems = read_runs(find_runs(arguments.runs))
    if not runs:
        raise ConfigError((problems or [f"{arguments.runs[0]}: no results.json at or below this folder"])[0])
    pairs = compare_rows(collect(runs), arguments.first, arguments.second)
    print(text_table(overview(pairs)))
    print(f"\n{LEGEND}")
    for pair in pairs:
        print(f"\n{pair.report.title}\n\n{text_table(outputs_table(pair))}")
        for line in most_confused(pair):
            print(line)
    for problem in problems:
        logger.error(problem)
    return 1 if problems else 0


LEGEND = (
    "first - second with its 95 % bootstrap interval over test places; p of the paired permutation test over places, "
    "corrected by Holm for the tasks of this table; effect: Cohen's d of the differences by place (0.2 small, 0.5 "
    "medium, 0.8 large), above 0 where the first is better; places where the first and the second are better."
)


def overview(pairs: Sequence[Pair]) -> list[list[str]]:
    """Return head and rows of a table with a line for each task."""
    lines = [["task", "first", "second", "score", "first - second", "p", "effect", "better at places"]]
    for pair in pairs:
        compared = pair.comparison
        names = [name_of(compared.first), name_of(compared.second)]
        effect = f"{pair.effect:+.2f}" if np.isfinite(pair.effect) else UNDEFINED
        wins = " / ".join(map(str, pair.wins))
        score, p = title(compared.metric), f"{compared.p:.2g}"
        lines.append([pair.report.title, *names, score, difference(compared), p, effect, wins])
    return lines


def outputs_table(pair: Pair) -> list[list[str]]:
    """Return head and rows of the scores of each class or target, the largest difference first."""
    metric, heading = pair.report.kind.by_output
    known = [(name, one, other) for name, one, other in pair.by_output if one is not None and other is not None]
    known.sort(key=lambda entry: -abs(entry[1] - entry[2]))
    rows = [
        [name, number(one, metric), number(other, metric), number(one - other, metric)] for name, one, other in known
    ]
    return [[heading, "first", "second", "first - second"], *rows]


def most_confused(pair: Pair, lines: int = 5) -> list[str]:
    """Return sentences on the confusions in which the two rows differ most; none without classes."""
    if pair.confused is None:
        return []
    names, differences = pair.report.task.outputs, pair.confused.copy()
    np.fill_diagonal(differences, 0.0)
    order = np.argsort(-np.abs(differences), axis=None)[:lines]
    found = [(int(at) // len(names), int(at) % len(names)) for at in order if abs(differences.flat[at]) >= 0.005]
    return [_confusion_sentence(differences[label, taken], names[label], names[taken]) for label, taken in found]


def _confusion_sentence(difference: float, label: str, taken: str) -> str:
    row = "first" if difference > 0 else "second"
    return f"The {row} takes {100 * abs(difference):.1f} % more of {label} for {taken}."
