"""The tiles of a task, by split: from a download as published, two folders of one's own, or labeled shards."""

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from finetune.config import Group, LabeledDataConfig
from finetune.tasks import Task
from shards.errors import ConfigError, SourceError, TileError
from shards.files.names import plain_name
from shards.files.untrusted import read_npz
from shards.read.reader import TileDataset, open_dataset
from shards.sensors.sensor import NODATA, Sensor, get_sensor
from shards.sources.geotiff import read_tile
from shards.sources.labels import Labels, declared_nodata, read_grid
from shards.sources.layouts import SPLITS, find_tiles
from shards.sources.pairs import (
    check_labels,
    find_label,
    label_prefix,
    published_split,
    read_text,
    scene_of,
    split_by_location,
)
from shards.sources.tile_names import SourceTile

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
HELD_OUT_FIELDS = 0.2
"""Share of HYPERVIEW's fields that are taken out of its training table to choose by: it has no test table, so the
published validation table is the test."""


@dataclass(frozen=True)
class Item:
    """One tile of a split.

    Attributes:
        name: unique in the task.
        place: what must not be in two groups of a bootstrap: the location, or the field.
        scene: the acquisition that it was cut from; empty where nothing tells.
        identity: together with the name, another one for other content, where something tells that without reading it.
        image: reads (bands, height, width), int16 or float32.
        mask: reads the label codes (height, width) int64 on the image's grid, ``NODATA`` where there is no label; None
            for regression.
        values: targets of a regression.
        nodata: reads the code that the label file declares to be none, where it declares one.
        file: of the image, where it has one of its own.
    """

    name: str
    place: str
    scene: str
    identity: str
    image: Callable[[], np.ndarray]
    mask: Callable[[], np.ndarray] | None = None
    values: tuple[float, ...] = ()
    nodata: Callable[[], int | None] = lambda: None
    file: Path | None = None


Split = dict[str, list[Item]]


def find_items(
    data: LabeledDataConfig, task: Task, seed: int, tell: Callable[[str], None] = lambda line: None
) -> Split:
    """The tiles of train, val and test.

    Args:
        tell: takes a line on what is done in another way than ``data`` says.

    Raises:
        SourceError: a folder, list, tile or label is missing, or a split is empty.
        ConfigError: the task has no layout for ``data.root``.
    """
    if data.shards is not None:
        items = _of_shards(data.shards)
    elif task.kind == "regression":
        items = _of_tables(data, task, seed)
    else:
        items = _of_folders(data, task, seed)
    if data.group is not None:
        by = grouping(data, items)
        if by != data.group:
            tell("data.group=scene: these tiles name no scene, so splits are drawn by location instead")
        items = regroup(items, by, seed)
    where, seen = data.splits or data.shards or data.root or data.images, dict[str, str]()
    for name in SPLITS:
        if not items[name]:
            mend = (
                "" if data.splits or data.shards else ": too few locations; name the tiles of each split (data.splits)"
            )
            raise SourceError(f"{where}: no tiles in the '{name}' split{mend}")
        for item in items[name]:
            if item.name in seen:
                raise SourceError(f"{where}: tile {item.name} is listed in '{seen[item.name]}' and in '{name}'")
            seen[item.name] = name
    return items


def folders_of(data: LabeledDataConfig, task: Task) -> tuple[Path, Path | None]:
    """Folders of images and of labels.

    Raises:
        ConfigError, SourceError: the task has no layout, or a folder is missing.
    """
    labels: Path | None
    if data.root is None:
        images, labels = Path(data.images or ""), Path(data.labels or "")
    elif task.layout is None:
        raise ConfigError(f"key 'data.root': task {task.name} has no layout: give 'data.images' and 'data.labels'")
    else:
        root = Path(data.root)
        below = root / task.layout.folder
        root = below if below.is_dir() else root
        images = root / task.layout.images
        labels = root / task.layout.labels if task.layout.labels else None
    for what, folder in (("images", images), ("labels", labels)):
        if folder is not None and not (folder.exists() if what == "labels" and data.root is None else folder.is_dir()):
            raise SourceError(f"{folder}: no such folder of {what}")
    return images, labels


def _of_folders(data: LabeledDataConfig, task: Task, seed: int) -> Split:
    images, labels = folders_of(data, task)
    assert labels is not None
    source = labels_of(data, labels, task)
    sensor = get_sensor(task.sensor)
    found = find_tiles(images, sensor.name)
    split = published_split(Path(data.splits), found, images) if data.splits else split_by_location(found, seed)
    check_labels(source, [images / tile.path for name in SPLITS for tile in split[name]])
    prefix = label_prefix(images, sensor.name)
    return {name: [_item_of_file(tile, images, source, prefix, sensor) for tile in split[name]] for name in SPLITS}


def labels_of(data: LabeledDataConfig, path: Path, task: Task) -> Labels:
    """How the labels of a task are read from a folder or file."""
    return Labels(
        path=path,
        align=data.align,
        field=data.label_field,
        layer=data.label_layer,
        names=task.codes_by_name,
        unnamed=NODATA if task.ignore == "others" else None,
    )


def _item_of_file(tile: SourceTile, images: Path, labels: Labels, prefix: str, sensor: Sensor) -> Item:
    image = images / tile.path
    label = partial(_label_of, labels, tile.path, prefix)
    return Item(
        name=tile.path,
        place=tile.location,
        scene=scene_of(tile),
        identity="",
        image=partial(_read_image, image, sensor),
        mask=partial(_read_labels, labels, label, image),
        nodata=partial(_declared_nodata, labels, label),
        file=image,
    )


def _read_image(path: Path, sensor: Sensor) -> np.ndarray:
    return read_tile(path, sensor).values


def _label_of(labels: Labels, image: str, prefix: str) -> str:
    """The label tile of an image, relative to the folder of labels."""
    return "" if labels.one_file else find_label(labels.path, image, prefix)


def _read_labels(labels: Labels, label: Callable[[], str], image: Path) -> np.ndarray:
    return labels.read(label(), read_grid(image))


def _declared_nodata(labels: Labels, label: Callable[[], str]) -> int | None:
    return None if labels.is_vector else declared_nodata(labels.path / label())


def declared_line(codes: Iterable[int]) -> str:
    """What is said where label files declare a class code to be their nodata value."""
    told = ", ".join(f"{codes[code]:,} px of {code}" if isinstance(codes, Counter) else str(code) for code in codes)
    return (
        f"label files declare a class code as nodata, so it doesn't count ({told}); where it is a class, remove the "
        "declaration: gdal_edit.py -unsetnodata LABEL"
    )


def _of_shards(location: str) -> Split:
    return {name: _items_of_dataset(open_dataset(location, split=name), location) for name in SPLITS}


def _items_of_dataset(dataset: TileDataset, location: str) -> list[Item]:
    names = {field: [value.decode() for value in dataset.table[field]] for field in ("key", "location", "timestamp")}
    scenes = [value.decode() for value in dataset.table["scene"]]
    return [
        Item(
            name=key,
            place=names["location"][row],
            scene=scene_of(SourceTile(names["location"][row], names["timestamp"][row], "", scenes[row])),
            identity=dataset.manifest.content_hash,
            image=partial(dataset.__getitem__, row),
            mask=partial(_mask_of_dataset, dataset, row, f"{location}: tile '{key}'"),
        )
        for row, key in enumerate(names["key"])
    ]


def _mask_of_dataset(dataset: TileDataset, row: int, where: str) -> np.ndarray:
    codes = dataset.mask(row)
    if codes is None:
        raise SourceError(f"{where} has no label tile; pack it again with --labels")
    return codes.astype(np.int64)


# ---- regression tables ----


def _of_tables(data: LabeledDataConfig, task: Task, seed: int) -> Split:
    if data.splits is None:
        raise ConfigError(f"key 'data.splits': task {task.name} needs the folder of train.csv and val.csv")
    images = folders_of(data, task)[0] if data.root else Path(data.images or "")
    tables = {name: Path(data.splits) / f"{name}.csv" for name in SPLITS}
    bands = get_sensor(task.sensor).num_bands
    read = {name: _read_table(path, task, images, bands) for name, path in tables.items() if path.exists()}
    if "train" not in read or not ("val" in read or "test" in read):
        raise SourceError(f"{data.splits}: needs the tables train.csv and val.csv")
    if "test" not in read:  # as published: see HELD_OUT_FIELDS
        test = read.pop("val")
        fields = sorted({item.place for item in read["train"]}, key=lambda one: _draw(one, seed))
        held_out = set(fields[: max(1, round(HELD_OUT_FIELDS * len(fields)))])
        read["val"] = [item for item in read["train"] if item.place in held_out]
        read["train"] = [item for item in read["train"] if item.place not in held_out]
        read["test"] = test
    return read


def _read_table(path: Path, task: Task, images: Path, bands: int) -> list[Item]:
    items = []
    table = csv.DictReader(io.StringIO(read_text(path), newline=""))
    columns = list(table.fieldnames or ())
    if twice := [
        name for name in columns if name in (*task.outputs, "sample_index", "field") and columns.count(name) > 1
    ]:
        raise SourceError(f"{path}: column {twice[0]} is there twice: remove one of them")
    for line, row in enumerate(table, start=2):
        try:
            values = tuple(float(row[name]) for name in task.outputs)
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{values} are not all finite")
            number = plain_name(row["sample_index"].strip())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(
                f"{path}, line {line}: no number in a column of {', '.join(task.outputs)}, or no sample_index ({error})"
            ) from None
        image = images / f"{number}.npz"
        if not image.exists():
            raise SourceError(f"{path}, line {line}: {image} is missing")
        place = row.get("field") or number
        reader = partial(_read_npz, image, bands)
        items.append(Item(number, place, place, "", reader, None, values, file=image))
    return items


def _read_npz(path: Path, bands: int) -> np.ndarray:
    try:
        values = read_npz(path)["data"]
    except (OSError, ValueError, KeyError) as error:
        raise TileError(f"{path}: not a readable npz with an array 'data' ({error})") from None
    if values.ndim != 3 or values.shape[0] != bands:
        raise TileError(f"{path}: shape {values.shape}, expected ({bands}, height, width)")
    return np.nan_to_num(values.astype(np.float32))


# ---- other splits ----


def grouping(data: LabeledDataConfig, items: Split) -> Group | None:
    """What splits are drawn by: locations where scenes are asked for and no tile names one."""
    if data.group == "scene" and not any(item.scene for name in SPLITS for item in items[name]):
        return "location"
    return data.group


def regroup(items: Split, by: Group | None, seed: int) -> Split:
    """The same tiles split anew, near the same sizes, so that no location (or scene) is in two splits; a tile without a
    scene goes with its location. No split is empty.

    Raises:
        SourceError: all tiles are of one or two groups.
    """
    everything = [item for name in SPLITS for item in items[name]]
    groups: dict[str, list[Item]] = {}
    for item in everything:
        groups.setdefault(item.scene if by == "scene" and item.scene else item.place, []).append(item)
    if len(groups) < len(SPLITS):
        other = "data.group=location" if by == "scene" else "more locations"
        count = f"{len(groups)} {by}{'' if len(groups) == 1 else 's'}"
        raise SourceError(
            f"data.group={by}: {len(everything)} tiles of {count} can't fill three splits: use {other}, or "
            "name the tiles of each split (data.splits)"
        )
    wanted = {name: len(items[name]) for name in SPLITS}
    if not all(wanted.values()):
        wanted = {name: round(SHARES[name] * len(everything)) for name in SPLITS}
    split: Split = {name: [] for name in SPLITS}
    # large groups first; each goes to the split that lacks most of its share, the last ones to splits that have none
    for number, group in enumerate(sorted(groups, key=lambda one: (-len(groups[one]), _draw(one, seed)))):
        empty = [name for name in SPLITS if not split[name]]
        choice = empty if len(empty) == len(groups) - number else SPLITS
        emptiest = max(choice, key=lambda name: (wanted[name] - len(split[name])) / max(wanted[name], 1))
        split[emptiest] += groups[group]
    return split


def _draw(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()
