"""Per-tile targets from tables in the layout of HYPERVIEW: train.csv and val.csv, images as npz."""

import csv
import io
import math
from functools import partial
from pathlib import Path

import numpy as np

from finetune.config import LabeledDataConfig
from finetune.data.folders import folders_of
from finetune.data.items import Item, Split
from finetune.data.regroup import draw
from finetune.tasks import Task
from shards.errors import ConfigError, SourceError, TileError
from shards.files.names import plain_name
from shards.files.untrusted import read_npz
from shards.sensors.sensor import get_sensor
from shards.sources.layouts import SPLITS
from shards.sources.pairs import read_text

HELD_OUT_FIELDS = 0.2
"""Fraction of HYPERVIEW's fields held out of its training table for validation: HYPERVIEW has no test table, so the
published validation table is the test split."""


def find_in_tables(data: LabeledDataConfig, task: Task, seed: int) -> Split:
    """Find the tiles that the tables in ``data.splits`` name.

    Raises:
        ConfigError, SourceError: a table is missing, or a line has no known tile or no valid value.
    """
    if data.shards is not None:
        raise ConfigError(
            f"key 'data.shards': shards contain label rasters, but task {task.name} needs tables: use data.root"
        )
    if data.splits is None:
        raise ConfigError(f"key 'data.splits': task {task.name} needs the folder of train.csv and val.csv")
    images = folders_of(data, task)[0] if data.root else Path(data.images or "")
    tables = {name: Path(data.splits) / f"{name}.csv" for name in SPLITS}
    bands = get_sensor(task.sensor).num_bands
    read = {name: _read_table(path, task, images, bands) for name, path in tables.items() if path.exists()}
    if "train" not in read or not ("val" in read or "test" in read):
        raise SourceError(f"{data.splits}: needs the tables train.csv and val.csv")
    if "test" not in read:  # as published, see HELD_OUT_FIELDS
        test = read.pop("val")
        fields = sorted({item.place for item in read["train"]}, key=lambda field: draw(field, seed))
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
        raise SourceError(f"{path}: column {twice[0]} occurs twice: remove one of them")
    for line, row in enumerate(table, start=2):
        try:
            values = tuple(float(row[name]) for name in task.outputs)
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{values} are not all finite")
            number = plain_name(row["sample_index"].strip())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(
                f"{path}, line {line}: a value of {', '.join(task.outputs)} is not a number, or sample_index is "
                f"missing ({error})"
            ) from None
        image = images / f"{number}.npz"
        if not image.exists():
            raise SourceError(f"{path}, line {line}: {image} is missing")
        place = row.get("field") or number
        reader = partial(_read_npz, image, bands)
        items.append(Item(number, place, place, "", reader, partial(np.asarray, values), file=image))
    return items


def _read_npz(path: Path, bands: int) -> np.ndarray:
    try:
        values = read_npz(path)["data"]
    except (OSError, ValueError, KeyError) as error:
        raise TileError(f"{path}: not a readable npz with an array 'data' ({error})") from None
    if values.ndim != 3 or values.shape[0] != bands:
        raise TileError(f"{path}: shape {values.shape}, expected ({bands}, height, width)")
    return np.nan_to_num(values.astype(np.float32))
