"""Types of config values, with their bounds, for schemas and messages."""

import os
import re
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from shards.files.names import inner_path, npy_name, plain_name, tar_name

MOST = 2**31 - 1
"""Largest count: libraries take it as an int32."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Wording:
    """What a value is called in messages, if its Python type and bounds do not say it."""

    text: str


def _countable(value: int) -> int:
    if value > MOST:
        raise ValueError(f"expected at most {MOST}, got {value}")
    return value


Positive = Annotated[int, Field(ge=1), AfterValidator(_countable)]
NotNegative = Annotated[int, Field(ge=0), AfterValidator(_countable)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Code = Annotated[int, Field(ge=-(2**63), lt=2**63), Wording("a whole number of 64 bits")]
"""Code of a class in a label tile."""

Rate = Annotated[float, Field(gt=0)]
Gigabytes = Annotated[float, Field(gt=0, le=1e9)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
"""A probability, or a part of a whole."""

OpenShare = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)} must ascend: write [{pair[1]}, {pair[0]}]")
    return pair


Scale = Annotated[tuple[Fraction, Fraction], Field(strict=False), AfterValidator(_ascending)]
"""Range of a random crop's share of an area."""


def unique(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Return the items of a list; raise ValueError if one is given twice."""
    seen: set[Item] = set()
    for item in items:
        if item in seen:
            raise ValueError(f"{item} is given twice: remove one of them")
        seen.add(item)
    return items


Unique = Annotated[tuple[Item, ...], Field(strict=False), AfterValidator(unique)]
Choices = Annotated[tuple[Item, ...], Field(strict=False, min_length=1), AfterValidator(unique)]
"""A list without duplicates; ``Choices`` has at least one item."""

SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
"""Words of YAML 1.1 for true and false. The parser reads them as text, since a class may be called ``no``."""


def as_switch(value: Any) -> Any:
    """Return True or False for yes, no, on and off in any case, and other values as they are."""
    return SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


Name = Annotated[str, Field(min_length=1), Wording("a name")]

Switch = Annotated[bool, BeforeValidator(as_switch)]


def _day_text(value: Any) -> Any:
    """Return a date, which Python code may give, as text."""
    return f"{value:%Y-%m-%d}" if isinstance(value, date) else value


def _iso_day(value: str) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError(f"expected a day such as 2022-06-30, got {value!r}") from None


Day = Annotated[str, BeforeValidator(_day_text), AfterValidator(_iso_day), Wording("a day such as 2022-06-30")]

VARIABLE = re.compile(r"\$\{(\w+)\}|\$([A-Za-z_]\w*)")


def fill_in(text: str, pattern: re.Pattern[str] = VARIABLE, known: dict[str, str] | None = None) -> str:
    """Return text with environment variables filled in.

    Args:
        pattern: how a variable is written; one of its groups is the name.
        known: values that come before the environment's.

    Raises:
        ValueError: a variable is not set, or empty.
    """

    def value_of(match: re.Match[str]) -> str:
        name = next(group for group in match.groups() if group)
        value = (known or {}).get(name) or os.environ.get(name)
        if not value:
            state = "empty" if name in os.environ else "not set"
            raise ValueError(f"{text!r} needs the environment variable {name}, which is {state}: export {name}=...")
        return value

    return pattern.sub(value_of, text)


def expand_path(text: str) -> str:
    """Return a path or URL with ``~`` and environment variables expanded.

    Raises:
        ValueError: it is empty, names a missing variable or user, or has characters that no path has.
    """
    path = fill_in(text)
    if "://" not in path:
        path = os.path.expanduser(path)
    if not path.strip():
        raise ValueError(f"expected a path, got {text!r}")
    if path.startswith("~") and path == text:
        raise ValueError(f"{path.split('/')[0]} is not a user's home folder: write ./{path} for a file of that name")
    if "$" in path:
        raise ValueError(
            f"'$' in {path!r} doesn't name a variable: write $NAME or ${{NAME}}, without a default; a path has no "
            "other '$'"
        )
    if any(char in path for char in "\0\n\r"):
        raise ValueError(f"a path has no line breaks or NUL characters, got {text!r}")
    return path


Plugins = Annotated[tuple[Name, ...], Field(strict=False)]
"""Names of modules and paths of .py files: see `shards.plugins`."""

PathText = Annotated[str, AfterValidator(expand_path), Wording("a path")]

PlainName = Annotated[str, AfterValidator(plain_name)]
TarName = Annotated[str, AfterValidator(tar_name)]
NpyName = Annotated[str, AfterValidator(npy_name)]
InnerPath = Annotated[str, AfterValidator(inner_path)]
"""Names out of files: see shards/files/names.py."""
