"""Seeded damage and forgery of files: flipped bytes, truncation, malicious values and names."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

NUMBERS = (0, -1, 1, 2**31, 2**32, 2**63, 2**64, 10**30, -(2**63) - 1, 0.5, 1e308, float("nan"), float("inf"))
NAMES = (
    "",
    ".",
    "..",
    "../victim.txt",
    "../../victim.txt",
    "a/b",
    "a\\b",
    "x\0y",
    "x\ny",
    "\x1b[31m",
    "é" * 300,
    "\ud800",
)
OTHERS = (None, True, [], {}, [[]], {"a": 1}, "text", [1, 2], [1e30] * 3)
TOKENS = (
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"\n",
    b"{",
    b"}",
    b"[" * 3000,
    b'"',
    b"../victim.txt",
    b"-1",
    b"9" * 40,
    b"nan",
)

Mutation = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, or remove, truncate, duplicate or replace a section."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place, kind = rng.randrange(len(damaged) + 1), rng.randrange(7)
        if kind == 0 and place < len(damaged):
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
            width = rng.choice((1, 2, 4, 8))
            damaged[place : place + width] = number.to_bytes(8, "little")[:width]
        elif kind == 2:
            del damaged[place:]
        elif kind == 3:
            del damaged[place : place + rng.randrange(1, 64)]
        elif kind == 4:
            damaged[place:place] = damaged[place : place + rng.randrange(1, 64)]
        elif kind == 5:
            damaged[place : place + rng.randrange(4)] = rng.choice(TOKENS)
        else:
            damaged[place : place + rng.randrange(1, 16)] = rng.randbytes(rng.randrange(16))
    return bytes(damaged)


def flip_start(data: bytes, rng: random.Random) -> bytes:
    """Apply `flip` to the first bytes, which hold headers."""
    return flip(data[:200], rng) + data[200:]


def forge(value: Any, rng: random.Random) -> Any:
    """Replace, remove or add one or two values of JSON content."""
    forged = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2))):
        holders = list(_holders(forged))
        if not holders:
            return rng.choice(OTHERS)
        holder = rng.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key, strange = rng.choice(list(keys)), rng.choice((*NUMBERS, *NAMES, *OTHERS))
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(NAMES)] = holder[key]
        elif kind == 1:
            holder.append(copy.deepcopy(holder[key]))
        elif isinstance(holder[key], str) and rng.random() < 0.7:
            holder[key] = rng.choice(NAMES)
        elif isinstance(holder[key], int | float) and rng.random() < 0.7:
            holder[key] = rng.choice(NUMBERS)
        else:
            holder[key] = strange
    return forged


def forge_json(data: bytes, rng: random.Random) -> bytes:
    """Apply `forge` to JSON text."""
    return json.dumps(forge(json.loads(data), rng)).encode()


def _holders(value: Any) -> Any:
    """Yield the nonempty lists and mappings in a value; within a list, visit only the first five items."""
    if isinstance(value, dict | list) and value:
        yield value
        for child in value.values() if isinstance(value, dict) else value[:5]:
            yield from _holders(child)
