"""Validation errors in one line: the dotted key, what it takes, what it was given, and how to write that."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from shards.config.annotations import (
    annotation_of,
    bare_type,
    item_annotation,
    registry_of,
    section_type,
    section_types,
    union_members,
)
from shards.config.wording import expected
from shards.config.yaml import typed
from shards.errors import ConfigError

LONGEST_VALUE = 300  # characters of a value in a message
NOTHING = ("", "none", "nil", "null")
Kinds = dict[str, type[BaseModel]]


def describe(error: ValidationError, schema: type[BaseModel], data: Any) -> str:
    """Describe the first error in ``data`` in one line, with the nearest key for an unknown one."""
    problems = error.errors(include_url=False)
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key, kind, kinds = _locate(_location(first), schema, data)
    keys = {_locate(_location(problem), schema, data)[0] for problem in problems}
    others = sum(not any(key != other and other.startswith(f"{key}.") for other in keys) for key in keys) - 1
    more = f" (and {others} more)" if others else ""
    return _line(first, key, kind, schema, kinds) + more


def _location(problem: Any) -> tuple[int | str, ...]:
    """Return the location of a problem: of a list that is too short, the list."""
    loc = problem["loc"]
    return loc[:-1] if problem["type"] == "missing" and isinstance(loc[-1], int) else loc


def _line(problem: Any, key: str, kind: Any, schema: type[BaseModel], kinds: Kinds) -> str:
    value = problem["input"]
    match problem["type"]:
        case "extra_forbidden" | "invalid_key":
            return f"unknown key '{key}'{_suggest(key, schema, kinds)}"
        case "missing" if isinstance(value, dict):
            return f"key '{key}' is required"
        case "union_tag_invalid":
            tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
            near = _nearest(str(tag), re.findall(r"'([^']*)'", known))
            key = key if isinstance(value, str) else f"{key}.name"
            return f"key '{key}': '{tag}' is not one of {known}{near or '; a plugin may add it'}"
        case "union_tag_not_found":
            near_name = difflib.get_close_matches("name", map(str, value), n=1)
            return (
                f"unknown key '{key}.{near_name[0]}'; did you mean 'name'?"
                if near_name
                else f"key '{key}.name' is required"
            )
        case "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            if isinstance(value, dict):  # a section's rules name its own keys with a dot in front
                message = re.sub(r"(?<!\S)\.(?=[a-z])", f"{key}." if key else "", message)
            return f"key '{key}': {message}" if key else message
    if kind is None:
        return f"key '{key}': {problem['msg'][0].lower()}{problem['msg'][1:]}, got {_short(value)}"
    return f"key '{key}': expected {expected(kind)}, got {_short(value)}{_hint(value, kind)}"


def _short(value: Any) -> str:
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


# ---- where ----


def _locate(loc: tuple[int | str, ...], schema: type[BaseModel], data: Any) -> tuple[str, Any, Kinds]:
    """Return the key of a pydantic location, the annotation of its value, and the config class of each section that a
    registry chooses.

    The names that pydantic gives the members of a union are not part of the key.
    """
    parts: list[str] = []
    kinds: Kinds = {}
    annotation: Any = schema
    for part in loc:
        if part == "[key]":  # of a mapping
            continue
        if registry_of(annotation) and (chosen := section_type(annotation, data)):
            annotation = kinds[".".join(parts)] = chosen
        data = _value_at(data, part)
        sections = list(section_types(annotation))
        if named := [section for section in sections if part in section.model_fields]:
            parts.append(str(part))
            annotation = annotation_of(named[0].model_fields[str(part)])
        elif sections or item_annotation(annotation) is None:
            if not sections and len(union_members(annotation)) > 1:
                continue  # "list[int]" or "literal['others']"
            parts.append(str(part))
            annotation = None
        elif isinstance(part, int) or get_origin(bare_type(annotation)) is dict:
            parts.append(str(part))
            annotation = item_annotation(annotation, part)
    return ".".join(parts), annotation, kinds


def _value_at(data: Any, part: int | str) -> Any:
    inside = isinstance(data, dict) or (isinstance(data, list | tuple) and isinstance(part, int))
    try:
        return data[part] if inside else None
    except LookupError:
        return None


# ---- which key was meant ----


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _suggest(key: str, schema: type[BaseModel], kinds: Kinds) -> str:
    known = list(_keys(schema, "", kinds))
    prefix, _, last = key.rpartition(".")
    section = re.sub(r"\.\d+(?=\.|$)", "", prefix)  # entries of a list have the keys of one
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    # the right name in another section, then a misspelled one here, then a misspelled one elsewhere
    for names, cutoff in ((known, 1.0), (siblings, 0.6), (known, 0.6)):
        by_last = {name.rpartition(".")[2]: name for name in reversed(names)}
        if near := difflib.get_close_matches(last, by_last, n=1, cutoff=cutoff):
            suggestion = by_last[near[0]]
            return f"; did you mean '{f'{prefix}.{near[0]}' if prefix and suggestion in siblings else suggestion}'?"
    return f"; known here: {', '.join(siblings or known)}"


def _keys(schema: type[BaseModel], prefix: str, kinds: Kinds) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield prefix + name
        chosen = kinds.get(prefix + name)
        annotation = annotation_of(field)
        within = [*section_types(annotation), *section_types(item_annotation(annotation))]
        for kind in [chosen] if chosen else within:
            yield from _keys(kind, f"{prefix}{name}.", kinds)


# ---- how to write it ----


def _hint(value: Any, annotation: Any) -> str:
    """Return how to write what was probably meant, if the key takes it."""
    if value is None:
        return ": an empty value is null: give a value, or remove the key"
    if isinstance(value, str) and "${" in value:
        return ": a variable is written ${NAME}, without a default"
    kinds = [bare_type(member) for member in union_members(annotation)]
    if any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
        return ""
    adapter = TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
    for text, candidate in _candidates(value):
        with suppress(ValidationError):
            adapter.validate_python(candidate)
            return f": write {text}"
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    return _nearest(value, choices) if isinstance(value, str) else ""


def _candidates(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield other ways to write a value, each with the value that it then is."""
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in NOTHING:  # YAML writes it empty, ~ or null
            yield "null", None
        if percent := re.fullmatch(r"([0-9.]+) ?%", text):
            with suppress(ValueError):
                yield f"{float(percent[1]) / 100:g}", float(percent[1]) / 100
        with suppress(ConfigError):
            yield f"{text} without quotes", typed(text, "")
            inner = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
            yield f"[{', '.join(inner)}]", [typed(part, "") for part in inner]
    elif isinstance(value, bool | int | float):
        if isinstance(value, float) and value.is_integer():
            yield str(int(value)), int(value)
        if value in (0, 1):
            yield str(bool(value)).lower(), bool(value)
        yield f"'{value}' in quotes, on a command line \"'{value}'\"", str(value)
        yield f"[{value}]", [value]
