"""Every key of a config, with what it takes, its default and its meaning: what help pages are made of."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from shards.config.annotations import annotation_of, item_annotation, registry_of, section_types, union_members
from shards.config.wording import expected

REQUIRED = "required"
WIDTH = 100  # characters of a line of the help page


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: dotted.
        takes: its values, in words.
        default: as YAML, or ``"required"``.
        meaning: its description.
    """

    name: str
    takes: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys of one section that are values, not sections.

    Attributes:
        name: dotted; empty for the whole config.
        choices: names of the implementations that have these keys, where a registry chooses; else empty.
        meaning: the docstring of its config class.
    """

    name: str
    choices: tuple[str, ...]
    meaning: str
    keys: tuple[Key, ...]


def sections(schema: type[BaseModel]) -> Iterator[Section]:
    """Yield the sections of a config in the order of its keys, each before those within it."""
    seen = set()
    for section in _sections(schema, "", (), None):
        if (section.name, section.choices) not in seen:  # a section within several that a registry chooses
            yield section
        seen.add((section.name, section.choices))


def help_page(schema: type[BaseModel]) -> str:
    """Return a page for a terminal on every key of a config."""
    lines: list[str] = []
    for section in sections(schema):
        chosen = f" ({', '.join(section.choices)})" if section.choices else ""
        lines += ["", f"{section.name}{chosen}:" if section.name else "", *_wrap(section.meaning, "  ")]
        for key in section.keys:
            lines += [f"  {key.name}", *_wrap(key.meaning, "      ")]
            lines += _wrap(f"{key.takes}; {_default(key)}", "      ")
    return "\n".join(lines).strip() + "\n"


def _default(key: Key) -> str:
    return REQUIRED if key.default == REQUIRED else f"default {key.default}"


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _sections(schema: type[BaseModel], name: str, choices: tuple[str, ...], values: Any) -> Iterator[Section]:
    """Yield a section and those within it.

    Args:
        values: the section's default, whose values differ from its class's own; None without one.
    """
    keys: list[Key] = []
    within: list[Section] = []
    for key, field in schema.model_fields.items():
        annotation, dotted = annotation_of(field), f"{name}.{key}" if name else key
        default = getattr(values, key, field.default)
        entries = list(_within(annotation, dotted, default))
        if not entries or _holds_choices(annotation) or field.default is None:
            takes, shown = expected(annotation), _as_yaml(default)
            if choices and key == "name":
                takes, shown = f"one of {', '.join(choices)}", shown if default in choices else REQUIRED
            keys.append(Key(dotted, takes, shown, _join_lines(field.description)))
        within += entries
    yield Section(name, choices, _join_lines(schema.__doc__), tuple(keys))
    yield from within


def _within(annotation: Any, name: str, default: Any) -> Iterator[Section]:
    """Yield the sections that a key may hold: one for each config class of a registry."""
    for key, inner in ((name, annotation), (f"{name}[]", item_annotation(annotation))):
        registries = [registry for member in union_members(inner) if (registry := registry_of(member))]
        for registry in registries:
            for config in dict.fromkeys(registry.configs.values()):
                names = tuple(each for each, registered in registry.configs.items() if registered is config)
                yield from _sections(config, key, names, default if isinstance(default, config) else None)
        for schema in () if registries else section_types(inner):
            yield from _sections(schema, key, (), default if isinstance(default, schema) else None)


def _holds_choices(annotation: Any) -> bool:
    """Return whether a key holds a list of sections that a registry chooses."""
    return any(registry_of(member) for member in union_members(item_annotation(annotation)))


def _join_lines(text: str | None) -> str:
    return " ".join((text or "").replace("``", "`").split())


def _as_yaml(value: Any) -> str:
    if value is PydanticUndefined:
        return REQUIRED
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """Return a section as plain values: only the name, if nothing else is set."""
    values = value.model_dump(mode="json", exclude_unset=True)
    return values["name"] if values.keys() == {"name"} else values
