"""YAML to typed config: `base:` inheritance, `${VAR}`, `key.sub=value` overrides, errors that name the mend.

Only pydantic and PyYAML are imported here, so that a wrong key is answered in well under a second.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from shards.errors import ConfigError
from shards.names import npy_name, plain_name, tar_name
from shards.safe_yaml import load_yaml

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST_VALUE = 300  # characters of a value in a message


class ConfigModel(BaseModel):
    """Base of every config section: frozen, no unknown keys, no silent type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


PlainName = Annotated[str, AfterValidator(plain_name)]
TarName = Annotated[str, AfterValidator(tar_name)]
NpyName = Annotated[str, AfterValidator(npy_name)]
"""Names out of files: see shards/names.py."""

Schema = TypeVar("Schema", bound=ConfigModel)


def load_config(path: str | Path, overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """Read a YAML config with its bases, apply overrides, check it against the schema.

    Args:
        path: YAML file; a key ``base: other.yaml`` (relative to this file) is merged below it.
        overrides: ``key.sub=value`` strings; values are parsed as YAML.
        schema: the typed config.

    Raises:
        ConfigError: one line that names the file and key, and the nearest valid key.
    """
    data = _read_with_bases(Path(path), ())
    for override in overrides:
        _apply_override(data, override)
    return check_config(_substitute(data, str(path)), schema, str(path))


def check_config(data: dict[str, Any], schema: type[Schema], where: str) -> Schema:
    """The typed config of values that were given; raises ConfigError as `load_config`, a line that begins ``where``."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_describe(error, schema)}") from None


def dump_config(config: ConfigModel) -> str:
    """The resolved config as YAML, in the order of the schema."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would read as a number."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number (YAML 1.1 wants 1.0e-3) and refuses duplicate keys."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: list[Any] = []
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in keys:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
        keys.append(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return load_yaml(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = str(getattr(error, "problem", error)).splitlines()[0]
        raise ConfigError(f"{where}{line}: not valid YAML: {reason}") from None


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: 'base' leads back to itself")
    try:
        data = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: can't read the config: {reason}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a config is a YAML mapping of sections")
    base = data.pop("base", None)
    if base is None:
        return data
    return _merge(_read_with_bases(path.parent / str(base), (*seen, path.resolve())), data)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}': expected key.sub=value")
    *parents, last = key.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, not a section")
    data[last] = _parse_yaml(text, f"override '{override}'")


def _substitute(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, where) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name == "REPO":
            return str(REPOSITORY)
        if name not in os.environ:
            raise ConfigError(f"{where}: '{value}' needs the environment variable {name}, which is not set")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", replace, value)


def _describe(error: ValidationError, schema: type[ConfigModel]) -> str:
    """One line for the first error, with the nearest key where a key was unknown."""
    problems = error.errors(include_url=False)
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key, kinds = _locate(first["loc"], schema)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_suggest(key, schema, kinds)}{more}"
    if first["type"] == "missing":
        return f"key '{key}' is required{more}"
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        return f"key '{key}.name': '{context['tag']}' is none of {context['expected_tags']}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        message += _nearest(str(first["input"]), re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    if not key:
        return f"{message}{more}"
    return f"key '{key}': {message[0].lower()}{message[1:]}, got {_short(first['input'])}{more}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _nearest(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _locate(loc: tuple[int | str, ...], schema: type[BaseModel]) -> tuple[str, dict[str, type[BaseModel]]]:
    """The key of a pydantic location, and which kind of section each tag in it chose (tags are no part of the key)."""
    parts: list[str] = []
    kinds: dict[str, type[BaseModel]] = {}
    choices: list[type[BaseModel]] = [schema]
    for part in map(str, loc):
        tagged = [
            kind for kind in choices if part in get_args(getattr(kind.model_fields.get("name"), "annotation", None))
        ]
        if len(choices) > 1 and tagged:
            choices = tagged
            kinds[".".join(parts)] = tagged[0]
            continue
        parts.append(part)
        choices = [kind for choice in choices if part in choice.model_fields for kind in _sections(choice, part)]
    return ".".join(parts), kinds


def _suggest(key: str, schema: type[BaseModel], kinds: dict[str, type[BaseModel]]) -> str:
    known = list(_keys(schema, "", kinds))
    section, _, last = key.rpartition(".")
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    # the right name in another section, then a misspelt one here, then a misspelt one elsewhere
    for names, cutoff in ((known, 1.0), (siblings, 0.6), (known, 0.6)):
        by_last = {name.rpartition(".")[2]: name for name in reversed(names)}
        if near := difflib.get_close_matches(last, by_last, n=1, cutoff=cutoff):
            return f"; did you mean '{by_last[near[0]]}'?"
    return f"; known here: {', '.join(siblings or known)}"


def _keys(schema: type[BaseModel], prefix: str, kinds: dict[str, type[BaseModel]]) -> Iterator[str]:
    for name in schema.model_fields:
        yield prefix + name
        chosen = kinds.get(prefix + name)
        for kind in [chosen] if chosen else _sections(schema, name):
            yield from _keys(kind, f"{prefix}{name}.", kinds)


def _sections(schema: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """The kinds of section that a field may hold; none where it holds a value."""
    annotation = schema.model_fields[name].annotation
    return [
        kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
