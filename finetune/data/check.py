"""Look at a task's download before anyone trains on it: `python -m finetune check TASK ROOT --splits FOLDER`.

Every listed tile is read in full with its label: files, bands, sizes, codes and missing values. One table, and a line
for each thing that is wrong; exit code 1 where there is one.
"""

import argparse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from finetune.config import LabeledDataConfig
from finetune.data.layouts import Item, Split, declared_line, find_items
from finetune.tasks import Task, get_task
from shards.config import check_config
from shards.errors import ConfigError, ForgeError
from shards.progress import progress
from shards.sensors.sensor import NODATA
from shards.sources.layouts import SPLITS

SHOWN = 20
"""Problems that are told one by one."""


@dataclass
class Finding:
    """Of one tile, or of a split's tiles together.

    Attributes:
        counts: pixels (segmentation) or tiles (multilabel) by class, and where no class counts the last.
        missing: pixels without a measurement, of ``pixels``.
        declared: pixels by class code that their label file declares to be its nodata value.
    """

    counts: np.ndarray
    missing: int = 0
    pixels: int = 0
    declared: Counter = field(default_factory=Counter)
    shapes: Counter = field(default_factory=Counter)
    values: list[tuple[float, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Finding") -> None:
        self.counts = self.counts + other.counts
        self.missing, self.pixels = self.missing + other.missing, self.pixels + other.pixels
        self.shapes += other.shapes
        self.declared += other.declared
        self.values += other.values
        self.problems += other.problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
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
    """Check, print, and return the exit code."""
    task = get_task(arguments.task)
    named = ("root", "splits", "images", "labels", "align", "label_field", "label_layer", "shards")
    given = {name: getattr(arguments, name) for name in named}
    if [bool(given["images"]), bool(given["root"]), bool(given["shards"])].count(True) != 1:
        raise ConfigError("give ROOT, or --images with --labels, or --shards")
    data = check_config(given, LabeledDataConfig, "check")
    items = find_items(data, task, seed=0)
    found = {name: _check_split(items[name], task, name, arguments.workers) for name in SPLITS}
    problems = [one for name in SPLITS for one in found[name].problems] + _between(task, items, found)
    print(_table(task, items, found))
    for one in [*problems[:SHOWN], *([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])]:
        print(f"error: {one}")
    for one in _remarks(task, items, found):
        print(f"note: {one}")
    print(f"{task.name}: {'NOT GOOD' if problems else 'good'}, {sum(len(items[name]) for name in SPLITS)} tiles read")
    return 1 if problems else 0


def _check_split(items: list[Item], task: Task, name: str, workers: int) -> Finding:
    total = Finding(np.zeros(len(task.outputs) + 1, np.int64))
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda item: _check_item(item, task), items)
        for one in progress(f"check {name}", len(items), found):
            total.add(one)
    return total


def _check_item(item: Item, task: Task) -> Finding:
    finding = Finding(np.zeros(len(task.outputs) + 1, np.int64))
    try:
        image = item.image()
        finding.shapes[image.shape] += 1
        missing = (image == NODATA).any(0)
        finding.missing, finding.pixels = int(missing.sum()), missing.size
        if item.mask is None:
            finding.values.append(item.values)
            return finding
        codes = item.mask()
    except ForgeError as error:
        finding.problems.append(str(error))
        return finding
    if codes.shape != image.shape[1:]:
        finding.problems.append(f"{item.name}: labels of {codes.shape} px, image of {image.shape[1:]}")
    unknown = task.unknown_codes(codes)
    if unknown:
        finding.problems.append(
            f"{item.name}: label code {unknown[0]} is no class of {task.name}: add it to its classes, or to 'ignore'"
        )
    none = codes == NODATA
    code = item.nodata() if none.any() else None
    if code in task.class_codes:
        finding.declared[code] += int(none.sum())
    if task.kind == "multilabel":
        present = task.to_multihot(codes)
        finding.counts = np.append(present, not present.any()).astype(np.int64)
    else:
        finding.counts = np.bincount(task.to_indices(codes).ravel(), minlength=len(task.outputs) + 1)
    return finding


def _between(task: Task, items: Split, found: dict[str, Finding]) -> list[str]:
    """What is wrong with the splits as a whole."""
    problems = []
    pairs = (
        [] if task.kind == "regression" else [*pairwise(SPLITS), ("train", "test")]
    )  # fields are shared as published
    for one, two in pairs:
        shared = {item.place for item in items[one]} & {item.place for item in items[two]}
        if shared:
            problems.append(f"{len(shared)} locations are in {one} and in {two}, e.g. {min(shared)}")
    if task.kind != "regression":
        none = [name for name in SPLITS if not found[name].counts[:-1].any() and not found[name].problems]
        problems += [f"{name}: no label is one of the classes" for name in none]
    shapes = Counter(shape[0] for name in SPLITS for shape in found[name].shapes)
    if len(shapes) > 1:
        problems.append(f"tiles of different bands: {', '.join(map(str, sorted(shapes)))}")
    return problems


def _remarks(task: Task, items: Split, found: dict[str, Finding]) -> list[str]:
    remarks = []
    for name in SPLITS:
        published, here = task.tiles.get(name), len(items[name])
        if published is not None and published != here and task.kind != "regression":
            remarks.append(f"{name}: {here} tiles, {published} are published")
        empty = [one for one, count in zip(task.outputs, found[name].counts[:-1], strict=True) if not count]
        if empty and task.kind != "regression" and not found[name].problems:
            remarks.append(f"{name}: no label of {', '.join(empty)}")
        if found[name].declared:
            remarks.append(f"{name}: {declared_line(found[name].declared)}")
    train = {item.scene for item in items["train"]} - {""}
    shared = sum(item.scene in train for item in items["test"])
    if shared:
        scenes = {item.scene or item.place for name in SPLITS for item in items[name]}
        mend = (
            "data.group=scene draws splits without that"
            if len(scenes) >= len(SPLITS)
            else "there are too few scenes to draw other splits"
        )
        remarks.append(
            f"{shared} of {len(items['test'])} test tiles are of scenes that training tiles are of, too: {mend}"
        )
    return remarks


def _table(task: Task, items: Split, found: dict[str, Finding]) -> str:
    """Counts by split and class, or by target."""
    rows = [["", *SPLITS], ["tiles", *(str(len(items[name])) for name in SPLITS)]]
    shapes = [sorted({"x".join(map(str, shape)) for shape in found[name].shapes}) for name in SPLITS]
    rows.append(["shape", *(", ".join(one[:2]) + (" ..." if len(one) > 2 else "") for one in shapes)])
    rows.append(["missing", *(f"{found[name].missing / max(found[name].pixels, 1):.1%}" for name in SPLITS)])
    if task.kind == "regression":
        for number, target in enumerate(task.outputs):
            columns = [np.array([one[number] for one in found[name].values]) for name in SPLITS]
            rows.append([target, *(f"{one.mean():.2f} ± {one.std():.2f}" if len(one) else "-" for one in columns)])
    else:
        unit = "px" if task.kind == "segmentation" else "tiles"
        for number, output in enumerate([*task.outputs, "not counted"]):
            rows.append([f"{output} ({unit})", *(f"{found[name].counts[number]:,}" for name in SPLITS)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(row) for row in aligned)
