"""Registries: implementations by name, each with its typed config, open to other people's packages.

A registry knows one kind of thing, such as encoders or loggers. The project registers its own implementations in the
same way as a plugin does::

    from pretrain.models.registry import ENCODERS

    @ENCODERS.register("my_encoder", config=MyEncoderConfig)
    class MyEncoder(Encoder): ...

Only names are held at first: a target or a config given as ``"module:attribute"`` is imported when it is first asked
for, so that a config is checked without torch, and a model is built without pydantic.
"""

import difflib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, Union

from shards.errors import ConfigError

if TYPE_CHECKING:
    from shards.config import ConfigModel

Target = TypeVar("Target")
Decorated = TypeVar("Decorated")


class Registry(Generic[Target]):
    """Implementations of one kind, by name.

    Args:
        kind: what the registry holds, singular, for messages: ``"encoder"``.
        config: the typed config of entries that bring none, or its ``"module:attribute"``.
    """

    def __init__(self, kind: str, config: "type[ConfigModel] | str" = "shards.config:ConfigModel") -> None:
        self.kind = kind
        self._config = config
        self._targets: dict[str, Target | str] = {}
        self._configs: dict[str, type[ConfigModel] | str] = {}

    def register(self, name: str, config: "type[ConfigModel] | str | None" = None) -> Callable[[Decorated], Decorated]:
        """Decorate a class or function to register it under ``name``.

        Args:
            name: unique within the registry.
            config: the options that it takes besides its name; None for those that all entries have.

        Raises:
            ConfigError: the name is taken by something else.
        """

        def decorate(target: Decorated) -> Decorated:
            self.add(name, target, config)  # type: ignore[arg-type]
            return target

        return decorate

    def add(self, name: str, target: "Target | str", config: "type[ConfigModel] | str | None" = None) -> None:
        """Register an object, or ``"module:attribute"`` to import when it is first asked for."""
        known = self._targets.get(name)
        if known is not None and _path(known) != _path(target):
            raise ConfigError(f"two {self.kind}s are named '{name}': {_path(known)} and {_path(target)}: rename one")
        self._targets[name] = target
        self._configs[name] = self._config if config is None else config

    @property
    def configs(self) -> "dict[str, type[ConfigModel]]":
        """The typed config of each name; its field ``name`` has that one value."""
        return {name: self.config(name) for name in self._configs}

    def config(self, name: str) -> "type[ConfigModel]":
        """The typed config of a name; raises ConfigError with the names that are known."""
        if name not in self._configs:
            raise ConfigError(self.unknown(name))
        config = self._configs[name]
        named = _named(_import(config) if isinstance(config, str) else config, name)
        self._configs[name] = named
        return named

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __getitem__(self, name: str) -> Target:
        """The implementation of a name; raises ConfigError with the names that are known."""
        if name not in self._targets:
            raise ConfigError(self.unknown(name))
        target = self._targets[name]
        if isinstance(target, str):
            target = self._targets[name] = _import(target)
        return target

    def names(self) -> tuple[str, ...]:
        """All names, in the order of their registration."""
        return tuple(self._targets)

    def unknown(self, name: str) -> str:
        """Describe an unknown name in one line: the nearest one, and all that are known."""
        near = difflib.get_close_matches(name, self._targets, n=1)
        hint = f": did you mean '{near[0]}'?" if near else ":"
        return f"unknown {self.kind} '{name}'{hint} known are {', '.join(self._targets)}, and what `plugins` adds"

    def union(self) -> Any:
        """The type of a config section with a key ``name``: one of all registered configs, told apart by that key."""
        from pydantic import Field

        configs = tuple(self.configs.values())
        return configs[0] if len(configs) == 1 else Annotated[Union[configs], Field(discriminator="name")]  # noqa: UP007


def _named(config: "type[ConfigModel]", name: str) -> "type[ConfigModel]":
    """The config with a required field ``name`` of one value, unless it has it already."""
    from pydantic import create_model

    field = config.model_fields.get("name")
    if field is not None and field.annotation == Literal[name]:
        return config
    return create_model(config.__name__, __base__=config, __doc__=config.__doc__, name=(Literal[name], ...))  # type: ignore[arg-type]


def _import(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def _path(target: object) -> str:
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', target)}"
