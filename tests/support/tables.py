"""Tile tables without tiles, for tests of plans and views."""

import numpy as np

from shards.format import table

UNKNOWN = {name: None for name in ("lon", "lat", "date", *table.QUALITY)}


def make_table(shards: list[list[str]], **columns: list) -> np.ndarray:
    """Return a table of shards, each a list of the locations of its tiles; other columns cover all tiles."""
    parts, begin = [], 0
    for locations in shards:
        count = len(locations)
        part = {name: [UNKNOWN.get(name, 0)] * count for name in table.COLUMNS}
        part |= {name: [""] * count for name in table.TEXT}
        timestamps = [f"{locations[:i].count(place):05d}" for i, place in enumerate(locations)]
        part |= {"location": locations, "timestamp": timestamps}
        part["key"] = [f"{a}_{b}" for a, b in zip(locations, timestamps, strict=True)]
        part |= {name: values[begin : begin + count] for name, values in columns.items()}
        parts.append(part)
        begin += count
    return table.join(parts, range(len(parts)))


def archive_table(locations: int, timestamps: int = 3, per_shard: int = 30) -> np.ndarray:
    """Return a table of ``locations`` with 1 to ``timestamps`` tiles, about ``per_shard`` tiles in each shard."""
    shards: list[list[str]] = [[]]
    for place in range(locations):
        if len(shards[-1]) >= per_shard:
            shards.append([])
        shards[-1] += [f"{place:07d}"] * (1 + place % timestamps)
    return make_table(shards)
