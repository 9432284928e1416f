"""The configs that we ship, their resolved values, and copies of them with other values."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from support.processes import REPOSITORY

from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig
from shards.config import ConfigModel, load_config

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
MISSING_IN_BASE = ["run.dir=runs/x", "data.shards=shards", "train.steps=10"]
VARIABLES = (
    "SPECTRALEARTH_SHARDS",
    "DESIS_SHARDS",
    "EO1_SHARDS",
    "SPECTRAL_EARTH",
    "SPECTRAL_EARTH_SPLITS",
    "ENMAP_POTSDAM",
    "ENCODER",
)


def schema_of(path: Path) -> type[ConfigModel]:
    return FinetuneConfig if "finetune" in path.parts else PretrainConfig


def overrides_of(path: Path) -> list[str]:
    return MISSING_IN_BASE if path.name == "base.yaml" and "finetune" not in path.parts else []


@cache
def values_of(path: Path) -> dict[str, Any]:
    return load_config(path, overrides_of(path), schema_of(path)).model_dump()


def keys_of(values: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys of sections and of the values in them."""
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*prefix, key))


def edited(values: dict[str, Any], key: tuple[str, ...], name: str, value: Any) -> dict[str, Any]:
    """Return a copy with another name or value at a key."""
    head, *rest = key
    if rest:
        return values | {head: edited(values[head], tuple(rest), name, value)}
    return {(name if one == head else one): (value if one == head else old) for one, old in values.items()}
