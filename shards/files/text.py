"""Reading of hand-written text files in any common Unicode encoding."""

import codecs
from pathlib import Path

from shards.errors import ConfigError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and encodings, as written by Windows editors and shells."""

MOST_BYTES = 16 << 20
"""Maximum size of a config, task or band table; real ones have a few kilobytes."""


def encoding_of(data: bytes) -> str:
    """Return the encoding that the byte order mark specifies, UTF-8 without one."""
    return next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")


def decode_text(data: bytes) -> str:
    """Decode text as UTF-8, or in the encoding of its byte order mark.

    Raises:
        ValueError: if the bytes are not text in that encoding.
    """
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        name = encoding.removesuffix("-sig").upper()
        raise ValueError(f"not {name} text (line {line}): save it as UTF-8") from None
    if "\0" in text:
        raise ValueError("not UTF-8 text (it contains NUL characters): save it as UTF-8")
    return text


def read_text_file(path: Path, where: str) -> str:
    """Read the text of a config, task or table.

    Args:
        where: name of the file in messages.

    Raises:
        ConfigError: if the file is missing, a folder, empty, too large, unreadable or not text.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{where}: can't be read: it is larger than {MOST_BYTES >> 20} MiB")
        text = decode_text(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{where}: can't be read: it is a folder: name a file in it") from None
    except OSError as error:
        raise ConfigError(f"{where}: can't be read: {error.strerror}") from None
    except ValueError as error:  # also raised for a path with a NUL character
        raise ConfigError(f"{where}: {error}") from None
    if not text.strip():
        raise ConfigError(f"{where}: the file is empty")
    return text
