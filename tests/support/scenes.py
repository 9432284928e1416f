"""Tiles cut from EnMAP L2A products, by their keys."""

from collections.abc import Collection
from pathlib import Path

from shards.sensors.sensor import get_sensor
from shards.sources.limits import SceneLimits
from shards.sources.scene import Scene

ENMAP = get_sensor("enmap")
NO_LIMITS = SceneLimits(cloud=None, nodata=None)
SIZE = 64


def tiles_of(path: Path, limits: SceneLimits = NO_LIMITS, skip: Collection[str] = (), size: int = SIZE) -> dict:
    """Return (source, tile) by key."""
    return {source.key: (source, tile) for source, tile in Scene(path, path.name, ENMAP, size, limits).tiles(skip)}
