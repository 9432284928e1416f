"""Registries: named implementations with typed configs, which third-party packages can extend.

A registry holds implementations of one kind, such as encoders or loggers. A plugin registers its own::

    from pretrain.config.objective import ObjectiveConfig
    from pretrain.registries import OBJECTIVES

    class MyConfig(ObjectiveConfig):
        temperature: float = 0.1

    @OBJECTIVES.register("my_objective", MyConfig)
    class MyObjective(Objective): ...

The project registers its own implementations in the same way, by the paths of targets and configs. A path
``"module:attribute"`` is imported on first use, so that configs are validated without torch and models are built
without pydantic.

A registry is also the type of a config section: ``objective: Annotated[ObjectiveConfig, OBJECTIVES]`` accepts the keys
of the implementation that its key ``name`` selects.
"""

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shards.errors import ConfigError
from shards.plugins import load_installed_plugins

if TYPE_CHECKING:
    from shards.config import NamedConfig

Target = TypeVar("Target")
Decorated = TypeVar("Decorated")


class Registry(Generic[Target]):
    """A mapping from names to implementations of one kind.

    Args:
        kind: singular noun for messages, such as ``"encoder"``.
        config: base class of the configs, or its ``"module:attribute"``; also the config of an implementation
            without options.
        default: name of the implementation that a config section without ``name`` selects.
    """

    def __init__(
        self, kind: str, config: "type[NamedConfig] | str" = "shards.config:NamedConfig", default: str | None = None
    ) -> None:
        self.kind, self.default = kind, default
        self._base = config
        self._configs: dict[str, type[NamedConfig] | str] = {}
        self._targets: dict[str, Target | str] = {}

    def register(self, name: str, config: "type[NamedConfig] | str | None" = None) -> Callable[[Decorated], Decorated]:
        """Decorate a class or function to register it under ``name``.

        Args:
            name: unique within the registry.
            config: class of its options, a subclass of the registry's base class; None for the base class.

        Raises:
            ConfigError: if the name is taken or the config does not extend the base class.
        """

        def decorate(target: Decorated) -> Decorated:
            self.add(name, target, config)  # type: ignore[arg-type]
            return target

        return decorate

    def add(self, name: str, target: "Target | str", config: "type[NamedConfig] | str | None" = None) -> None:
        """Register an object or its ``"module:attribute"``; raises like `register`."""
        known = self._targets.get(name)
        if known is not None and _path(known) != _path(target):
            raise ConfigError(f"two {self.kind}s are named '{name}': {_path(known)} and {_path(target)}: rename one")
        self._targets[name] = target
        self._configs[name] = self._base if config is None else config
        if not isinstance(config, str | None) and not issubclass(config, self.base):
            raise ConfigError(f"{self.kind} '{name}': its config {config.__name__} must extend {self.base.__name__}")

    def __contains__(self, name: object) -> bool:
        if name not in self._targets:
            load_installed_plugins()
        return name in self._targets

    def __getitem__(self, name: str) -> Target:
        """Return the implementation of a name; raises ConfigError with the known names."""
        self._require(name)
        target = self._targets[name]
        if isinstance(target, str):
            target = self._targets[name] = _import(target)
        return target

    def names(self) -> tuple[str, ...]:
        """Return all names in order of registration."""
        load_installed_plugins()
        return tuple(self._targets)

    @property
    def base(self) -> "type[NamedConfig]":
        """Base class of the configs."""
        if isinstance(self._base, str):
            self._base = _import_config(self._base)
        return self._base

    def config(self, name: str) -> "type[NamedConfig]":
        """Return the config class of a name; raises ConfigError with the known names."""
        self._require(name)
        config = self._configs[name]
        if isinstance(config, str):
            config = self._configs[name] = _import_config(config)
        return config

    @property
    def configs(self) -> "dict[str, type[NamedConfig]]":
        """Config class of each name."""
        return {name: self.config(name) for name in self.names()}

    def unknown(self, name: str) -> str:
        """Return a one-line message for an unknown name, with the closest name and all known ones."""
        near = difflib.get_close_matches(name, self._targets, n=1)
        hint = f": did you mean '{near[0]}'?" if near else ":"
        return f"unknown {self.kind} '{name}'{hint} known are {', '.join(self._targets)}, and what `plugins` adds"

    def _require(self, name: str) -> None:
        if name not in self:
            raise ConfigError(self.unknown(name))

    # ---- as the type of a config section ----

    def config_for(self, value: Any) -> "type[NamedConfig] | None":
        """Return the config class that a section's values select, or None."""
        name = self._name_of(value)
        return self.config(name) if isinstance(name, str) and name in self else None

    def validate(self, value: Any) -> "NamedConfig":
        """Return the typed config of a section's values: a mapping with a key ``name``, or just the name."""
        from pydantic_core import PydanticKnownError

        if isinstance(value, self.base):
            return value
        if not isinstance(value, str | dict):
            raise PydanticKnownError("model_type", {"class_name": self.base.__name__})
        name, config = self._name_of(value), self.config_for(value)
        if name is None:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'name'"})
        if config is None:
            known = ", ".join(map(repr, self._targets))
            raise PydanticKnownError(
                "union_tag_invalid", {"discriminator": "'name'", "tag": str(name), "expected_tags": known}
            )
        return config.model_validate({"name": name, **({} if isinstance(value, str) else value)})

    def _name_of(self, value: Any) -> Any:
        return value.get("name", self.default) if isinstance(value, dict) else value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Return a schema with one alternative per config class and the names that use it."""
        alternatives = []
        for config in dict.fromkeys(self.configs.values()):
            resolved = dict(handler.resolve_ref_schema(handler(config.__pydantic_core_schema__)))
            names = [name for name, one in self.configs.items() if one is config]
            required = {*resolved.get("required", []), "name"} - ({"name"} if self.default in names else set())
            properties = resolved["properties"] | {"name": {**resolved["properties"]["name"], "enum": names}}
            alternatives.append(resolved | {"properties": properties, "required": sorted(required)})
        return {"anyOf": alternatives}


def _import(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def _import_config(path: str) -> "type[NamedConfig]":
    return _import(path)


def _path(target: object) -> str:
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '?')}:{getattr(target, '__qualname__', target)}"
