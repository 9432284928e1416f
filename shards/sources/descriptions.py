"""The JSON description of a sample in a third-party tar: place and time; impossible values count as unknown."""

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

from shards.errors import TileError
from shards.files.untrusted import read_json_value
from shards.format.table import QUALITY

DEGREES = {"lon": 180.0, "lat": 90.0}
"""Largest absolute value of each coordinate, in degrees."""

TEXTS = ("location", "timestamp", "scene", "split")
NOTHING = (None, "", "null", "None", "nan", "NaN")
"""Values that exporters write for unknown fields."""


def read_description(data: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the JSON of a sample.

    Args:
        data: JSON text.

    Returns:
        The fields with known, valid values: location, timestamp, scene and split as text, date as an ISO day, lon and
        lat in degrees, shares in [0, 1]; and the reason for each rejected field, or ``JSON`` for the entire text.
    """
    try:
        description = read_json_value(data)
    except ValueError as error:
        return {}, {"JSON": f"can't be read ({' '.join(str(error).split())[:60]})"}
    if not isinstance(description, dict):
        return {}, {"JSON": f"is not an object with fields, but {_shown(description)}"}
    known: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for name, parse in _FIELDS.items():
        if description.get(name) in NOTHING:
            continue
        try:
            known[name] = parse(name, description[name])
        except TileError as error:
            wrong[name] = str(error)
    if ("lon" in known) != ("lat" in known):  # one coordinate alone is useless
        known.pop("lon", None)
        known.pop("lat", None)
    return known, wrong


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        raise TileError(f"{_shown(value)} is not a name")
    text = str(value).strip()
    if not text.isprintable():  # includes lone surrogates, which UTF-8 can't encode
        raise TileError(f"{_shown(value)} is not a name")
    return text


def _day(name: str, value: Any) -> str:
    try:
        if isinstance(value, str):
            if len(value.strip()) <= len("YYYY-MM-DD"):
                return date.fromisoformat(value.strip()).isoformat()
            moment = datetime.fromisoformat(value.strip())
            return (moment.astimezone(UTC) if moment.tzinfo else moment).date().isoformat()
    except (ValueError, OverflowError):
        pass
    raise TileError(f"{_shown(value)} is not a date like 2022-07-24")


def _degrees(name: str, value: Any) -> float:
    number = _number(value)
    if not abs(number) <= DEGREES[name]:  # NaN too
        raise TileError(f"{_shown(value)} is not a number of degrees from -{DEGREES[name]:g} to {DEGREES[name]:g}")
    return number


def _share(name: str, value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise TileError(f"{_shown(value)} is not a share from 0 to 1")
    return number


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _shown(value: Any) -> str:
    return repr(value)[:40]


_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(TEXTS, _text),
    "date": _day,
    **dict.fromkeys(DEGREES, _degrees),
    **dict.fromkeys(QUALITY, _share),
}
