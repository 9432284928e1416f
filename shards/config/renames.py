"""Keys under their old names, accepted for one version: a config class lists them in ``RENAMED``."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from shards.config.annotations import annotation_of, item_annotation, section_type
from shards.errors import ConfigError


def rename_keys(values: Any, schema: Any, key: str = "") -> tuple[Any, list[tuple[str, str]]]:
    """Return the values of a config, or of a section of it, with every key under its new name.

    Args:
        schema: the config class, or the annotation of the section.
        key: dotted key of the section.

    Returns:
        The values, and the dotted keys that were renamed, old and new.

    Raises:
        ConfigError: a key is given under both names.
    """
    if isinstance(values, list):
        parts = [rename_keys(item, item_annotation(schema, n), f"{key}.{n}") for n, item in enumerate(values)]
        return [item for item, _ in parts], [pair for _, pairs in parts for pair in pairs]
    if not isinstance(values, dict) or (section := section_type(schema, values)) is None:
        return values, []
    names: Mapping[str, str] = getattr(section, "RENAMED", {})
    renamed: dict[str, Any] = {}
    pairs: list[tuple[str, str]] = []
    for old, value in values.items():
        name = names.get(old, old)
        if name != old:
            pairs.append((_dotted(key, old), _dotted(key, name)))
            if name in values:
                raise ConfigError(f"key '{pairs[-1][0]}' is the old name of '{pairs[-1][1]}': remove one of them")
        renamed[name], within = rename_keys(value, _annotation(section, name), _dotted(key, name))
        pairs += within
    return renamed, pairs


def _annotation(section: type[BaseModel], name: str) -> Any:
    return annotation_of(section.model_fields[name]) if name in section.model_fields else None


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
