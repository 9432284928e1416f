"""Safe YAML: plain values only, no surprising conversions, and bounded memory.

Values have the types of YAML 1.2, so that ``no`` is text and ``1e-4`` a number. What YAML 1.1 would read as another
number than it looks like is an error: ``0644`` (420) and ``12:30:00`` (45,000).
"""

import re
from itertools import accumulate
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from shards.errors import ConfigError

MOST_DEPTH = 100
MOST_NODES = 100_000
"""Most values in a document, aliases expanded; a task with thousands of codes has a tenth of it."""

TAG = "tag:yaml.org,2002:"
OCTAL, CLOCK = "!octal", "!clock"
TYPES = {
    OCTAL: (r"[-+]?0(?:[0-9_]+|[oO][0-9]+)", "-+0"),
    CLOCK: (r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?", "-+0123456789"),
    f"{TAG}int": (r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+", "-+0123456789"),
    f"{TAG}float": (
        r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    f"{TAG}bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    f"{TAG}null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    f"{TAG}merge": (r"<<", "<"),
}
"""Type of a value without quotes by its form, in this order, with its first characters; else text."""

HINTS = (
    (r"found character '\\t'", "indent with spaces, not with tabs"),
    (r"mapping values are not allowed", "quote text that has ': ' in it, and indent keys of a section alike"),
    (r"constructor for the tag", "quote text that begins with '!'"),
    (r"undefined alias|while scanning an alias", "quote text that begins with '*'"),
    (r"while scanning an anchor", "quote text that begins with '&'"),
    (r"unknown escape", r"use single quotes, or write \\ for \ "),
    (r"found character '[@`%]'", "quote text that begins with it"),
    (r"another document", "write one document, without a second '---'"),
    (r"could not find expected ':'", "write 'key: value'"),
)


class Unquoted(str):
    """Text without quotes that holds a ``${VARIABLE}``; `typed` gives its type once that is filled in."""


class _Refused(ConstructorError):
    """Valid YAML that surely does not mean what it says."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(None, None, problem, node.start_mark)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the types above."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML looks for it here)


class _Dumper(yaml.SafeDumper):
    """Quotes text that this or another loader would read as another type."""


for _tag, (_form, _first) in TYPES.items():
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(_tag, re.compile(f"^(?:{_form})$"), list(_first))


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML document; None if it is empty.

    Raises:
        ConfigError: not YAML, a key twice, nested too deeply, or more than `MOST_NODES` values: one line that begins
            with ``where`` and names the line in the text.
    """
    try:
        return _load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        wrong = str(error.problem) if isinstance(error, _Refused) else f"not valid YAML: {_reason(error, text, mark)}"
        raise ConfigError(f"{where}{line}: {wrong}") from None


def typed(text: str, where: str) -> Any:
    """Return the value that YAML gives text without quotes: a number, true, null or text.

    Raises:
        ConfigError: a number would be read as another one.
    """
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: {getattr(error, 'problem', error)}") from None
    finally:
        loader.dispose()


def dump_yaml(value: Any) -> str:
    """Return plain values as YAML that reads back the same, with keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def _load(text: str) -> Any:
    if depth(text) > MOST_DEPTH:  # the scanner's time is cubic in it
        raise yaml.YAMLError("brackets nested too deeply")
    try:
        parser = _Loader(text)
        try:
            node = parser.get_single_node()
            if node is None:
                return None
            if _size(node, {}) > MOST_NODES:
                raise yaml.YAMLError(f"more than {MOST_NODES} values, aliases written out")
            return parser.construct_document(node)
        finally:
            parser.dispose()
    except RecursionError:
        raise yaml.YAMLError("nested too deeply, or an alias that contains itself") from None
    except (ValueError, OverflowError, AttributeError, LookupError) as error:
        raise yaml.YAMLError(f"a value that can't be read ({error})") from None


def _reason(error: yaml.YAMLError, text: str, mark: Any) -> str:
    """Return what is wrong and how to write it."""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).splitlines()[0]
    context = f"{getattr(error, 'context', '')} {problem}"
    hint = next((hint for pattern, hint in HINTS if re.search(pattern, context)), None)
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if re.search(r"[\[{,].*\$\{", line):  # a brace within brackets ends them
        hint = "within { } and [ ], quote text that holds ${...}"
    return f"{problem}: {hint}" if hint else problem


def depth(text: str) -> int:
    """Return how many brackets are open at once in YAML or JSON, including those in quotes and comments."""
    steps = (1 if char in "[{" else -1 for char in text if char in "[]{}")
    return max(accumulate(steps), default=0)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values of a node, aliases expanded; an alias of its own parent recurses forever."""
    if id(node) not in known:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = loader.construct_scalar(node)
    return Unquoted(text) if node.style is None and "${" in text else text


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Build a mapping without duplicate keys; keys that ``<<`` merges into it may be replaced."""
    first: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == f"{TAG}merge":
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise _Refused("a key is a list or a mapping: write a name", key_node)
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise _Refused(f"key {key_node.value or 'null'} is not text: write a name, or '{key_node.value}'", key_node)
        if key in first:
            message = f"key '{key}' is given twice, first in line {first[key]}: remove one of them"
            raise _Refused(message, key_node)
        first[key] = key_node.start_mark.line + 1
    return loader.construct_mapping(node, deep=True)


def _octal(loader: _Loader, node: yaml.ScalarNode) -> None:
    plain = node.value.lstrip("+-0oO_") or "0"
    message = f"{node.value} may be octal: write {plain} for the decimal number, or '{node.value}' in quotes for text"
    raise _Refused(message, node)


def _clock(loader: _Loader, node: yaml.ScalarNode) -> None:
    message = f"{node.value} may be a number in base 60: write a plain number, or '{node.value}' in quotes for text"
    raise _Refused(message, node)


_Loader.add_constructor(f"{TAG}str", _text)
_Loader.add_constructor(f"{TAG}map", _unique_mapping)
_Loader.add_constructor(OCTAL, _octal)
_Loader.add_constructor(CLOCK, _clock)
