"""YAML to typed config: `base:` inheritance, `${VAR}`, `key.sub=value` overrides, errors that name the fix.

Only pydantic and PyYAML are imported here, so that a wrong key is answered in well under a second.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shards.config.errors import describe
from shards.config.fields import expand_path, fill_in
from shards.config.renames import rename_keys
from shards.config.yaml import MOST_DEPTH, Unquoted, depth, dump_yaml, parse_yaml, typed
from shards.console import get_logger, launched_rank
from shards.errors import ConfigError
from shards.files.text import read_text_file
from shards.plugins import absolute_plugin, load_plugins

REPOSITORY = Path(__file__).resolve().parent.parent.parent
logger = get_logger(__name__)
BRACED = re.compile(r"\$\{(\w+)\}")


class StrictModel(BaseModel):
    """Base of what is read from files: frozen, no unknown keys, no silent type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ConfigModel(StrictModel):
    """Base of every config section: numbers are finite, and the docstring below a field is its description."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Old names of keys, accepted with a warning, and the new ones."""


class NamedConfig(ConfigModel):
    """Base of the config of a registered implementation; see `shards.registry.Registry`."""

    name: str
    """Name of the implementation."""

    @property
    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain values."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return {key: value for key, value in values.items() if key != "name"}

    def to_plain(self) -> Any:
        """Return a config as a plain value: only the name if all options have their defaults, else a mapping."""
        return {"name": self.name, **self.options} if self.options else self.name


Schema = TypeVar("Schema", bound=ConfigModel)


def load_config(
    path: str | Path, overrides: Sequence[str], schema: type[Schema], assumed: Mapping[str, str] | None = None
) -> Schema:
    """Read a YAML or JSON config with its bases, apply overrides, check it against the schema.

    Args:
        path: YAML file, or JSON by its suffix; a key ``base: other.yaml`` (relative to this file) is merged below it.
        overrides: ``key.sub=value`` strings; values are parsed as YAML.
        schema: the typed config.
        assumed: by key, a value to use where the environment variables of the given one are not set.

    Raises:
        ConfigError: one line that names the file and key, and the nearest valid key.
    """
    path = Path(os.path.expanduser(path))  # shells leave the ~ of --config=~/run.yaml
    data = _read_with_bases(path, ())
    for override in overrides:
        _apply_override(data, override)
    data = _substitute(data, str(path), assumed or {})
    if "plugins" in schema.model_fields:
        load_plugins(_resolve_plugins(data, Path()), str(path))
    return check_config(data, schema, str(path))


def check_config(data: Any, schema: type[Schema], where: str) -> Schema:
    """Return the typed config of given values; raises ConfigError as `load_config`, in a line that begins ``where``."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of keys to values, found {_kind(data)}")
    try:
        data, renamed = rename_keys(data, schema)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    for old, new in renamed if launched_rank() == 0 else ():
        logger.warning(
            "%s: key '%s' is now '%s': rename it; the next version will not accept the old name", where, old, new
        )
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe(error, schema, data)}") from None


def parse_values(text: str, where: str, suffix: str = ".yaml") -> Any:
    """Parse the text of a YAML file, or of a JSON file by its suffix; raises ConfigError in one line."""
    if suffix.lower() != ".json":
        return parse_yaml(text, where)
    from shards.files.untrusted import read_json_value  # numpy

    if depth(text) > MOST_DEPTH:
        raise ConfigError(f"{where}: not valid JSON: nested too deeply")
    try:
        return read_json_value(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}, line {error.lineno}: not valid JSON: {error.msg}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from None


def dump_config(config: StrictModel) -> str:
    """Return the resolved config as YAML, in the order of the schema."""
    return dump_yaml(config.model_dump())


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"the value {value}")


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: 'base' leads back to itself")
    data = parse_values(read_text_file(path, f"{path}"), str(path), path.suffix)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a config is a YAML mapping of sections, found {_kind(data)}")
    _resolve_plugins(data, path.parent)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{path}: key 'base': expected the path of one file, got {base!r}")
    try:
        below = path.parent / expand_path(_filled(base, str(path)))
    except ValueError as error:
        raise ConfigError(f"{path}: key 'base': {error}") from None
    return _merge(_read_with_bases(below, (*seen, path.resolve())), data)


def _resolve_plugins(data: dict[str, Any], folder: Path) -> list[str]:
    """Make the paths of plugins absolute, relative to ``folder``, and return the plugins.

    What is not a list of text is left to the schema.
    """
    plugins = data.get("plugins")
    if not isinstance(plugins, list) or not all(isinstance(plugin, str) for plugin in plugins):
        return []
    data["plugins"] = [absolute_plugin(os.path.expandvars(os.path.expanduser(plugin)), folder) for plugin in plugins]
    return data["plugins"]


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    *parents, last = key.split(".")
    if not separator or not all((*parents, last)):
        raise ConfigError(f"override '{override}': expected key.sub=value")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a section")
    if re.search(r"\s#", text) and text.lstrip()[:1] not in ("'", '"', "[", "{"):
        raise ConfigError(f"override '{override}': YAML drops what follows ' #': quote the value: {key}='\"...\"'")
    data[last] = parse_yaml(text, f"override '{override}'")


def _substitute(value: Any, where: str, assumed: Mapping[str, str], key: str = "") -> Any:
    """Fill in ``${VAR}``; values without quotes get their type after that."""
    if isinstance(value, dict):
        return {name: _substitute(item, where, assumed, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, where, assumed, f"{key}.{number}") for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    dotted = key.removeprefix(".")
    location = f"{where}: key '{dotted}'"
    try:
        filled = _filled(value, location)
    except ConfigError:
        if dotted not in assumed:
            raise
        return assumed[dotted]
    return typed(filled, location) if isinstance(value, Unquoted) else filled


def _filled(text: str, where: str) -> str:
    try:
        return fill_in(text, BRACED, {"REPO": str(REPOSITORY)})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
