"""The tiles of a task by split, for every source of labels."""

from collections.abc import Callable

from finetune.config import LabeledDataConfig
from finetune.data.items import Split
from finetune.data.regroup import grouping, regroup
from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of
from shards.errors import SourceError
from shards.registry import Registry
from shards.sources.layouts import SPLITS

LabelSource = Callable[[LabeledDataConfig, Task, int], Split]
"""Finds the tiles of each split with their labels, given the config, the task and the seed of random splits."""

LABEL_SOURCES: Registry[LabelSource] = Registry("label source")
LABEL_SOURCES.add("rasters", "finetune.data.label_rasters:find_with_label_rasters")
LABEL_SOURCES.add("target_rasters", "finetune.data.target_rasters:find_with_target_rasters")
LABEL_SOURCES.add("tables", "finetune.data.tables:find_in_tables")
LABEL_SOURCES.add("tile_classes", "finetune.data.tile_classes:find_with_tile_classes")


def find_items(
    data: LabeledDataConfig, task: Task, seed: int, warn: Callable[[str], None] = lambda line: None
) -> Split:
    """Find the tiles of train, val and test.

    Args:
        warn: called with one line for each deviation from ``data``.

    Raises:
        SourceError: a folder, list, tile or label is missing, or a split is empty.
        ConfigError: the task has no layout for ``data.root``.
    """
    items: Split = LABEL_SOURCES[kind_of(task).labels_from](data, task, seed)
    if data.group is not None:
        by = grouping(data, items)
        if by != data.group:
            warn("data.group=scene: these tiles name no scene, so splits are drawn by location instead")
        items = regroup(items, by, seed)
    where, seen = data.splits or data.shards or data.root or data.images, dict[str, str]()
    for name in SPLITS:
        if not items[name]:
            hint = (
                "" if data.splits or data.shards else ": too few locations; name the tiles of each split (data.splits)"
            )
            raise SourceError(f"{where}: no tiles in the '{name}' split{hint}")
        for item in items[name]:
            if item.name in seen:
                raise SourceError(f"{where}: tile {item.name} is listed in '{seen[item.name]}' and in '{name}'")
            seen[item.name] = name
    return items
