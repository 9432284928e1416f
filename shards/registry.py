"""Registries: implementations by name, each with its typed config, open to other people's packages.

A registry knows one kind of thing, such as encoders or loggers. The project registers its own implementations in the
same way as a plugin does::

    from pretrain.models.registry import ENCODERS

    @ENCODERS.register("my_encoder", config=MyEncoderConfig)
    class MyEncoder(Encoder): ...

Only names and configs are held at first: a target given as ``"module:attribute"`` is imported when it is first asked
for, so that a config is checked without torch.
"""

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, Generic, Literal, TypeVar, Union

from pydantic import Field, create_model

from shards.config import ConfigModel
from shards.errors import ConfigError

Target = TypeVar("Target")
Decorated = TypeVar("Decorated")


class Registry(Generic[Target]):
    """Implementations of one kind, by name.

    Args:
        kind: what the registry holds, singular, for messages: ``"encoder"``.

    Attributes:
        configs: the typed config of each name; its field ``name`` has that one value.
    """

    def __init__(self, kind: str, config: type[ConfigModel] = ConfigModel) -> None:
        self.kind, self.base = kind, config
        self.configs: dict[str, type[ConfigModel]] = {}
        self._targets: dict[str, Target | str] = {}

    def register(self, name: str, config: type[ConfigModel] | None = None) -> Callable[[Decorated], Decorated]:
        """Decorate a class or function to register it under ``name``.

        Args:
            name: unique within the registry.
            config: the options that it takes besides its name.

        Raises:
            ConfigError: the name is taken by something else.
        """

        def decorate(target: Decorated) -> Decorated:
            self.add(name, target, config)  # type: ignore[arg-type]
            return target

        return decorate

    def add(self, name: str, target: "Target | str", config: type[ConfigModel] | None = None) -> None:
        """Register an object, or ``"module:attribute"`` to import when it is first asked for."""
        known = self._targets.get(name)
        if known is not None and _path(known) != _path(target):
            raise ConfigError(f"two {self.kind}s are named '{name}': {_path(known)} and {_path(target)}: rename one")
        self._targets[name] = target
        self.configs[name] = _named(config or self.base, name)

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __getitem__(self, name: str) -> Target:
        """The implementation of a name; raises ConfigError with the names that are known."""
        if name not in self._targets:
            raise ConfigError(self.unknown(name))
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = self._targets[name] = getattr(import_module(module), attribute)
        return target

    def names(self) -> tuple[str, ...]:
        """All names, in the order of their registration."""
        return tuple(self._targets)

    def unknown(self, name: str) -> str:
        """Describe an unknown name in one line: the nearest one, and all that are known."""
        near = difflib.get_close_matches(name, self._targets, n=1)
        hint = f": did you mean '{near[0]}'?" if near else ":"
        return f"unknown {self.kind} '{name}'{hint} known are {', '.join(self._targets)}, and what `plugins` adds"

    def validate(self, value: Any) -> Any:
        """Return the typed config of a section's values: a mapping with a key ``name``, or the name alone."""
        if isinstance(value, self.base):
            return value
        options = {"name": value} if isinstance(value, str) else value
        if not isinstance(options, dict) or options.get("name") not in self.configs:
            raise ValueError(self.unknown(str(options)))
        return self.configs[options["name"]].model_validate(options)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.validate)

    def union(self) -> Any:
        """The type of a config section with a key ``name``: one of all registered configs, told apart by that key."""
        configs = tuple(self.configs.values())
        return configs[0] if len(configs) == 1 else Annotated[Union[configs], Field(discriminator="name")]  # noqa: UP007


def _named(config: type[ConfigModel], name: str) -> type[ConfigModel]:
    """The config with a required field ``name`` of one value, unless it has it already."""
    field = config.model_fields.get("name")
    if field is not None and field.annotation == Literal[name]:
        return config
    return create_model(config.__name__, __base__=config, __doc__=config.__doc__, name=(Literal[name], ...))  # type: ignore[arg-type]


def _path(target: object) -> str:
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', target)}"
