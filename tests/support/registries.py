"""Registrations that last for one test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shards.registry import Registry


@contextmanager
def registered(registry: Registry, name: str, target: Any, config: Any = None) -> Iterator[None]:
    """Register a target under a name inside the block, as a plugin does."""
    registry.add(name, target, config)
    try:
        yield
    finally:
        registry._configs.pop(name)
        registry._targets.pop(name)
