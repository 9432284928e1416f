"""New random splits in which no location, or no scene, is in two of them."""

import hashlib

from finetune.config import Group, LabeledDataConfig
from finetune.data.items import Item, Split
from shards.errors import SourceError
from shards.sources.layouts import SPLITS

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def grouping(data: LabeledDataConfig, items: Split) -> Group | None:
    """Return the grouping of the splits; scenes fall back to locations if no tile names a scene."""
    if data.group == "scene" and not any(item.scene for name in SPLITS for item in items[name]):
        return "location"
    return data.group


def regroup(items: Split, by: Group | None, seed: int) -> Split:
    """Redraw the splits, with nearly the same sizes, so that no location (or scene) is in two of them.

    A tile without a scene is grouped by its location. No split is empty.

    Raises:
        SourceError: there are fewer than three groups.
    """
    everything = [item for name in SPLITS for item in items[name]]
    groups: dict[str, list[Item]] = {}
    for item in everything:
        groups.setdefault(item.scene if by == "scene" and item.scene else item.place, []).append(item)
    if len(groups) < len(SPLITS):
        advice = "data.group=location" if by == "scene" else "more locations"
        count = f"{len(groups)} {by}{'' if len(groups) == 1 else 's'}"
        raise SourceError(
            f"data.group={by}: {len(everything)} tiles of {count} can't fill three splits: use {advice}, or "
            "name the tiles of each split (data.splits)"
        )
    sizes = {name: len(items[name]) for name in SPLITS}
    if not all(sizes.values()):
        sizes = {name: round(SHARES[name] * len(everything)) for name in SPLITS}
    split: Split = {name: [] for name in SPLITS}
    # large groups first; each goes to the split furthest below its target size, the last ones to empty splits
    for number, group in enumerate(sorted(groups, key=lambda name: (-len(groups[name]), draw(name, seed)))):
        empty = [name for name in SPLITS if not split[name]]
        choice = empty if len(empty) == len(groups) - number else SPLITS
        emptiest = max(choice, key=lambda name: (sizes[name] - len(split[name])) / max(sizes[name], 1))
        split[emptiest] += groups[group]
    return split


def draw(text: str, seed: int) -> bytes:
    """Return the sort key of a text for an order drawn from a seed."""
    return hashlib.sha256(f"{seed} {text}".encode()).digest()
