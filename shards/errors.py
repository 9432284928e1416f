"""Errors that the user can fix: each is one line that names the file, key or rank, and the fix."""

import re


class ForgeError(Exception):
    """Base class of all errors that are shown to the user as one line, without a traceback.

    ``exit_code`` is the exit code of the command: 2 for misuse, 1 for work that could not be finished.
    ``everywhere`` is True if all processes of a group raise the error, so that one of them can report it for all.
    """

    exit_code = 2
    everywhere = False

    def __init__(self, message: str = "") -> None:
        line = _CONTROLS.sub(" ", message.encode(errors="backslashreplace").decode())
        line = "".join(char if char.isprintable() else " " for char in line)
        if len(line) > LONGEST:  # the cause is at the start, the fix at the end
            line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
        super().__init__(line)


LONGEST = 1600
"""Maximum number of characters of a message: a value from a damaged file can have any length."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""Characters that break a line or control a terminal: names read from files can contain them, and lone surrogates."""


class ConfigError(ForgeError):
    """A config file, key, value or command line that is invalid."""


class TileError(ForgeError):
    """A source tile that can't be used; packing sets it aside and continues."""


class SourceError(ForgeError):
    """A source directory that is missing, empty or has an unknown layout."""


class ShardError(ForgeError):
    """A shard, index or manifest that is missing, damaged or in another format."""


class UnreachableError(ShardError):
    """A storage that does not respond or denies access; the files in it may be intact."""

    exit_code = 1


class MissingShardError(UnreachableError):
    """A file that a manifest lists and that was there is gone; its tiles may be intact elsewhere."""


class PackStopped(ForgeError):
    """Packing was interrupted; finished shards are kept."""

    exit_code = 1


class TooManyBadTiles(ForgeError):
    """The fraction of unusable tiles exceeds the limit."""

    exit_code = 1
