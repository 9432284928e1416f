"""What a config value may be, in words, for messages and the reference."""

from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shards.config.annotations import bare_type, is_union, metadata_of, registry_of, union_members
from shards.config.fields import Wording

BOUNDS = {"ge": "of at least {}", "gt": "greater than {}", "le": "at most {}", "lt": "less than {}"}


def expected(annotation: Any) -> str:
    """Return what values an annotation takes, in words: "a whole number of at least 1"."""
    optional = ", or null" if NoneType in get_args(bare_type(annotation)) else ""
    words = " or ".join(dict.fromkeys(_describe(member) for member in union_members(annotation)))
    return words + optional


def _describe(annotation: Any) -> str:
    bare = bare_type(annotation)
    metadata = list(_flat(metadata_of(annotation)))
    for item in metadata:
        if isinstance(item, Wording):
            return item.text
    if get_origin(bare) is Annotated or is_union(bare):
        return expected(bare)
    bounds = _bounds(metadata)
    if get_origin(bare) is Literal:
        return ("one of " if len(get_args(bare)) > 1 else "") + ", ".join(map(repr, get_args(bare)))
    if get_origin(bare) in (list, tuple):
        return _list(bare, metadata)
    if registry := registry_of(annotation):
        return f"a name ({', '.join(registry.names())}), or a section with its keys"
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return f"a section with the keys {', '.join(bare.model_fields)}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(bare, "another kind of value") + bounds


def _list(bare: Any, metadata: list[Any]) -> str:
    args = get_args(bare)
    length = next((item.min_length for item in metadata if hasattr(item, "min_length")), 0)
    if get_origin(bare) is tuple and args[-1] is not Ellipsis:
        return f"a list of {len(args)} values, each {expected(args[0])}"
    return f"a list{' of one value or more' if length else ''}, each {expected(args[0])}"


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from _flat(item.metadata) if isinstance(item, FieldInfo) else [item]


def _bounds(metadata: list[Any]) -> str:
    limits = {name: getattr(item, name) for item in metadata for name in BOUNDS if hasattr(item, name)}
    if limits.keys() == {"ge", "le"}:
        return f" from {limits['ge']} to {limits['le']}"
    words = [text.format(limits[name]) for name, text in BOUNDS.items() if name in limits]
    return f" {' and '.join(words)}" if words else ""
