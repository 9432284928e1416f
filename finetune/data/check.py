"""Check a task's download before training on it: `python -m finetune check TASK ROOT --splits FOLDER`.

Every listed tile is read in full with its label, to check files, bands, sizes, codes and missing values. The command
prints one table and one line per problem, and exits with code 1 if there are problems.
"""

import argparse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from finetune.config import LabeledDataConfig
from finetune.data.items import Item, Split
from finetune.data.label_rasters import declared_line
from finetune.data.layouts import find_items
from finetune.tasks import Task, get_task
from finetune.tasks.kinds.kind import TaskKind, kind_of
from shards.config import check_config
from shards.errors import ConfigError, ForgeError
from shards.progress import progress
from shards.sensors.sensor import NODATA
from shards.sources.layouts import SPLITS

SHOWN = 20
"""Number of problems that are printed individually."""


@dataclass
class Finding:
    """What was found in one tile, or in all tiles of a split.

    Attributes:
        tally: tally of the labels, see TaskKind.tally.
        missing: number of pixels without a measurement, out of ``pixels``.
        declared: number of pixels by class code, for codes that the label file declares as its nodata value.
    """

    tally: np.ndarray
    missing: int = 0
    pixels: int = 0
    declared: Counter = field(default_factory=Counter)
    shapes: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Finding") -> None:
        self.tally = self.tally + other.tally
        self.missing, self.pixels = self.missing + other.missing, self.pixels + other.pixels
        self.shapes += other.shapes
        self.declared += other.declared
        self.problems += other.problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("task", help="name (see `python -m finetune tasks`), or a YAML file")
    parser.add_argument("root", nargs="?", help="folder that the download was unpacked into")
    parser.add_argument("--splits", help="folder of train.txt, val.txt and test.txt (of train.csv and val.csv)")
    parser.add_argument("--images", help="instead of ROOT: folder of image tiles")
    parser.add_argument(
        "--labels", help="and folder of label tiles of the same names, or one file: polygons or a raster"
    )
    parser.add_argument(
        "--align", choices=("nearest",), help="bring labels of another grid to the images' (data.align)"
    )
    parser.add_argument("--label-field", help="field of the polygons that holds the class (data.label_field)")
    parser.add_argument("--label-layer", help="layer of a file of polygons with several (data.label_layer)")
    parser.add_argument("--shards", help="instead of both: shards packed with --labels")
    parser.add_argument("--workers", type=int, default=8, help="threads that read (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Check the tiles, print the findings and return the exit code."""
    task = get_task(arguments.task)
    named = ("root", "splits", "images", "labels", "align", "label_field", "label_layer", "shards")
    given = {name: getattr(arguments, name) for name in named}
    if [bool(given["images"]), bool(given["root"]), bool(given["shards"])].count(True) != 1:
        raise ConfigError("give ROOT, or --images with --labels, or --shards")
    data = check_config(given, LabeledDataConfig, "check")
    items = find_items(data, task, seed=0)
    findings = {name: _check_split(items[name], kind_of(task), name, arguments.workers) for name in SPLITS}
    problems = [problem for name in SPLITS for problem in findings[name].problems] + _between(task, items, findings)
    print(_table(task, items, findings))
    for line in [*problems[:SHOWN], *([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])]:
        print(f"error: {line}")
    for remark in _remarks(task, items, findings):
        print(f"note: {remark}")
    print(f"{task.name}: {'NOT GOOD' if problems else 'good'}, {sum(len(items[name]) for name in SPLITS)} tiles read")
    return 1 if problems else 0


def _check_split(items: list[Item], kind: TaskKind, name: str, workers: int) -> Finding:
    total = Finding(np.zeros_like(kind.tally(None)))
    with ThreadPoolExecutor(workers) as pool:
        findings = pool.map(lambda item: _check_item(item, kind), items)
        for finding in progress(f"check {name}", len(items), findings):
            total.add(finding)
    return total


def _check_item(item: Item, kind: TaskKind) -> Finding:
    finding = Finding(np.zeros_like(kind.tally(None)))
    try:
        image = item.image()
        finding.shapes[image.shape] += 1
        missing = (image == NODATA).any(0)
        finding.missing, finding.pixels = int(missing.sum()), missing.size
        raw = item.label()
    except ForgeError as error:
        finding.problems.append(str(error))
        return finding
    if raw.ndim > 1 and raw.shape[-2:] != image.shape[1:]:
        finding.problems.append(f"{item.name}: labels of {raw.shape[-2:]} px, image of {image.shape[1:]}")
    problem = kind.find_problem(raw)
    if problem:
        finding.problems.append(f"{item.name}: {problem}")
        return finding
    none = raw == NODATA
    code = item.nodata() if none.any() else None
    if code in kind.task.class_codes:
        finding.declared[code] += int(none.sum())
    labels = kind.encode(raw)
    finding.tally = kind.tally(None if labels is None else labels[None])
    return finding


def _between(task: Task, items: Split, findings: dict[str, Finding]) -> list[str]:
    """Describe the problems of all splits together."""
    problems = []
    kind = kind_of(task)
    pairs = [*pairwise(SPLITS), ("train", "test")] if kind.splits_by_place else []
    for first, second in pairs:
        shared = {item.place for item in items[first]} & {item.place for item in items[second]}
        if shared:
            problems.append(f"{len(shared)} locations are in {first} and in {second}, e.g. {min(shared)}")
    none = [name for name in SPLITS if not kind.known(findings[name].tally).any() and not findings[name].problems]
    problems += [f"{name}: no label is one of the {kind.outputs_are}" for name in none]
    shapes = Counter(shape[0] for name in SPLITS for shape in findings[name].shapes)
    if len(shapes) > 1:
        problems.append(f"tiles have different numbers of bands: {', '.join(map(str, sorted(shapes)))}")
    return problems


def _remarks(task: Task, items: Split, findings: dict[str, Finding]) -> list[str]:
    kind, remarks = kind_of(task), []
    for name in SPLITS:
        published, count = task.tiles.get(name), len(items[name])
        if published is not None and published != count and kind.splits_by_place:
            remarks.append(f"{name}: {count} tiles, {published} are published")
        empty = [
            output for output, known in zip(task.outputs, kind.known(findings[name].tally), strict=True) if not known
        ]
        if empty and not findings[name].problems:
            remarks.append(f"{name}: no label of {', '.join(empty)}")
        if findings[name].declared:
            remarks.append(f"{name}: {declared_line(findings[name].declared)}")
    train = {item.scene for item in items["train"]} - {""}
    shared = sum(item.scene in train for item in items["test"])
    if shared:
        scenes = {item.scene or item.place for name in SPLITS for item in items[name]}
        hint = (
            "data.group=scene draws splits without this overlap"
            if len(scenes) >= len(SPLITS)
            else "there are too few scenes to draw other splits"
        )
        remarks.append(f"{shared} of {len(items['test'])} test tiles share a scene with training tiles: {hint}")
    return remarks


def _table(task: Task, items: Split, findings: dict[str, Finding]) -> str:
    """Return a table of tiles, shapes and labels by split."""
    rows = [["", *SPLITS], ["tiles", *(str(len(items[name])) for name in SPLITS)]]
    shapes = [sorted({"x".join(map(str, shape)) for shape in findings[name].shapes}) for name in SPLITS]
    rows.append(["shape", *(", ".join(names[:2]) + (" ..." if len(names) > 2 else "") for names in shapes)])
    rows.append(["missing", *(f"{findings[name].missing / max(findings[name].pixels, 1):.1%}" for name in SPLITS)])
    rows += kind_of(task).describe_tallies([findings[name].tally for name in SPLITS])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(row) for row in aligned)
