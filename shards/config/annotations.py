"""What the annotation of a config field says: its bounds, the sections that it may hold, and what lists hold."""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shards.registry import Registry


def annotation_of(field: FieldInfo) -> Any:
    """Return a field's annotation with its bounds."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def bare_type(annotation: Any) -> Any:
    """Return an annotation without the bounds around it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def metadata_of(annotation: Any) -> tuple[Any, ...]:
    """Return the metadata around a type: bounds, or a registry."""
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def is_union(bare: Any) -> bool:
    """Return whether a type is a union."""
    return get_origin(bare) in (Union, UnionType)


def union_members(annotation: Any) -> list[Any]:
    """Return the members of a union but None, each with its bounds; else the annotation itself."""
    bare, outer = bare_type(annotation), metadata_of(annotation)
    if not is_union(bare):
        return [annotation]
    members = [member for member in get_args(bare) if member is not NoneType]
    return [Annotated[member, *outer] if outer else member for member in members]


def item_annotation(annotation: Any, index: int | str = 0) -> Any:
    """Return the annotation of a value in a list or mapping; None if it is neither."""
    for member in union_members(annotation):
        bare = bare_type(member)
        args = get_args(bare)
        if get_origin(bare) is dict:
            return args[1]
        if get_origin(bare) in (list, tuple):
            is_own = isinstance(index, int) and len(args) > index and args[-1] is not ...
            return args[index] if is_own else args[0]  # type: ignore[index]
    return None


def section_types(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the config classes of the section that a field may hold; none where it holds a value."""
    for member in union_members(annotation):
        bare = bare_type(member)
        if registry := registry_of(member):
            yield from dict.fromkeys(registry.configs.values())
        elif is_union(bare):
            yield from section_types(bare)
        elif isinstance(bare, type) and issubclass(bare, BaseModel):
            yield bare


def section_type(annotation: Any, values: Any) -> type[BaseModel] | None:
    """Return the config class that the values of a section choose; None if several fit, or none."""
    for member in union_members(annotation):
        if registry := registry_of(member):
            return registry.config_for(values)
    sections = list(section_types(annotation))
    return sections[0] if len(sections) == 1 else None


def registry_of(annotation: Any) -> Registry | None:
    """Return the registry that chooses a section's config class, if there is one."""
    return next((item for item in metadata_of(annotation) if isinstance(item, Registry)), None)
