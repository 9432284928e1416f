"""The leaderboard: results of many labs, and the refusal of what ran on other data.

::

    DIR/reference/.../results.json    of each task, one evaluation on the right data and splits
    DIR/LAB/.../results.json          the results of each lab

Only ``results.json`` is read. Results are accepted if task, splits, images and labels have the hashes of the reference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.hashes import digest
from finetune.evaluation.portion import Portion
from finetune.evaluation.provenance import differences, task_hash
from finetune.evaluation.results import Entry, Provenance, RunHeader, read_scores
from finetune.metrics.aggregate import aggregate
from finetune.metrics.metric import lower_is_better
from finetune.report.board import REFERENCE
from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of
from shards.errors import ConfigError
from shards.sources.layouts import SPLITS

LEGEND = (
    "Mean ± standard deviation over seeds on the test tiles. All results of a task are of the same tiles, splits, "
    "images and labels, by their hashes."
)
RANKED = (
    "Encoders with results of all tasks, on all training tiles: of each, the protocol and head that are best on the "
    "validation tiles. IQM: the interquartile mean of scores that are scaled to 0 and 1 for the lowest and the "
    "highest of a task, with its 95 % interval over draws of seeds. Rank: the mean over tasks."
)


@dataclass(frozen=True)
class Submission:
    """Seeds of one lab's encoder with one protocol, head and portion of the training tiles."""

    lab: str
    encoder: str
    way: str
    portion: Portion
    entries: list[Entry]

    def scores(self, metric: str, split: str = "test") -> np.ndarray:
        """Return a score of each seed that defines it (seeds,)."""
        found = [getattr(entry, split) for entry in self.entries]
        return np.array([scores[metric] for scores in found if metric in scores])


@dataclass(frozen=True)
class Board:
    """Accepted submissions by task name, and a line for each refused file."""

    tasks: dict[str, Task]
    submissions: dict[str, list[Submission]]
    refused: list[str]


def read_board(folder: Path) -> Board:
    """Read the references and the results of all labs.

    Raises:
        ConfigError: the folder or its references are missing, damaged, or contradict each other.
    """
    references: dict[str, tuple[Task, Provenance]] = {}
    for path in sorted((folder / REFERENCE).rglob("results.json")):
        header, _ = read_scores(path)
        task, known = references.setdefault(header.task.name, (header.task, data_of(header)))
        if changed := differences(data_of(header), known):
            raise ConfigError(f"{path}: another reference of {task.name} differs in {', '.join(changed)}: keep one")
    if not references:
        raise ConfigError(f"{folder / REFERENCE}: no results.json of a reference: copy one run of each task here")
    submissions: dict[str, list[Submission]] = {name: [] for name in references}
    refused = []
    for path in sorted(folder.rglob("results.json")):
        lab = path.relative_to(folder).parts[0]
        try:
            if lab != REFERENCE:
                header, entries = read_scores(path)
                _require_data(path, header, references)
                submissions[header.task.name] += _submissions(lab, header, entries)
        except ConfigError as error:
            refused.append(str(error))
    return Board({name: task for name, (task, _) in references.items()}, submissions, refused)


def data_of(header: RunHeader) -> Provenance:
    """Return the identity of a run's data by name: task, splits, images and labels."""
    hashes: dict[str, dict[str, Any]] = {what: header.data.get(what, {}) for what in ("labels", "images")}
    of_splits = {f"{split} {what}": values.get(split) for what, values in hashes.items() for split in SPLITS}
    return {"task": task_hash(header.task), "test tiles": digest([header.tiles, header.places]), **of_splits}


def _require_data(path: Path, header: RunHeader, references: dict[str, tuple[Task, Provenance]]) -> None:
    name = header.task.name
    if name not in references:
        raise ConfigError(f"{path}: task {name} has no reference: known are {', '.join(references)}")
    found = data_of(header)
    if None in found.values():
        raise ConfigError(f"{path}: results of an earlier version, which don't say their data: evaluate again")
    if changed := differences(found, references[name][1]):
        raise ConfigError(f"{path}: refused, since it differs from the reference of {name} in {', '.join(changed)}")


def _submissions(lab: str, header: RunHeader, entries: list[Entry]) -> Iterator[Submission]:
    groups: dict[tuple[str, str, Portion], list[Entry]] = {}
    for entry in entries:
        way = entry.protocol if entry.protocol == entry.head else f"{entry.protocol}, {entry.head}"
        groups.setdefault((entry.encoder, way, entry.portion), []).append(entry)
    for (encoder, way, portion), group in groups.items():
        yield Submission(lab, str(header.encoders[encoder].get("name", encoder)), way, portion, group)


def ranked(board: Board, name: str) -> list[Submission]:
    """Return the submissions of a task, those on more training tiles first, then by their score."""
    metric = kind_of(board.tasks[name]).primary
    sign = 1 if lower_is_better(metric) else -1
    defined = [one for one in board.submissions[name] if one.scores(metric).size]
    return sorted(defined, key=lambda one: (one.portion.rank, sign * one.scores(metric).mean()))


def aggregates(board: Board) -> list[list[str]]:
    """Return head and rows of the table over all tasks; only the head for fewer than two tasks."""
    lines = [["lab", "encoder", "IQM", "rank"]]
    best = {name: _best_of_encoders(board, name) for name in board.tasks}
    if len(best) < 2:
        return lines
    complete = set.intersection(*(set(of_task) for of_task in best.values()))
    keys = {"\n".join(key): key for key in sorted(complete)}
    scores = {text: [of_task[key] for of_task in best.values()] for text, key in keys.items()}
    for text, found in aggregate(scores).items():
        low, high = found.interval
        lines.append([*keys[text], f"{found.iqm:.3f} [{low:.3f}, {high:.3f}]", f"{found.rank:.1f}"])
    return lines


def _best_of_encoders(board: Board, name: str) -> dict[tuple[str, str], np.ndarray]:
    """Return, by lab and encoder, the test scores of what is best on the validation tiles; higher is better."""
    metric = kind_of(board.tasks[name]).primary
    sign = -1 if lower_is_better(metric) else 1
    best: dict[tuple[str, str], Submission] = {}
    for one in ranked(board, name):
        key = one.lab, one.encoder
        validated = one.scores(metric, "validation")
        if not one.portion.is_all or not validated.size:
            continue
        before = best[key].scores(metric, "validation").mean() if key in best else -sign * np.inf
        if sign * validated.mean() > sign * before:
            best[key] = one
    return {key: sign * one.scores(metric) for key, one in best.items()}
