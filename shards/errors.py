"""The errors that a user can mend: each is one line that names the file, key or rank, and the mend."""

import re


class ForgeError(Exception):
    """Base of all errors that are shown to the user as one line, without a traceback.

    ``exit_code`` is what a command returns: 2 for misuse, 1 for work that could not be finished.
    ``everywhere``: every process of a group raises it, so one of them may speak for all.
    """

    exit_code = 2
    everywhere = False

    def __init__(self, message: str = "") -> None:
        line = _CONTROLS.sub(" ", message.encode(errors="backslashreplace").decode())
        line = "".join(char if char.isprintable() else " " for char in line)
        if len(line) > LONGEST:  # what is wrong stands at its beginning, and what to do at its end
            line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
        super().__init__(line)


LONGEST = 1600
"""Characters of a message: a value out of a damaged file may be of any length."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""What breaks a line, or steers a terminal: names out of files may hold it, and half of a character (a surrogate)."""


class ConfigError(ForgeError):
    """A config file, key, value or command line that can't be accepted."""


class TileError(ForgeError):
    """One source tile that can't be used; sharding sets it aside and goes on."""


class SourceError(ForgeError):
    """A source directory that is missing, empty or of no known layout."""


class ShardError(ForgeError):
    """A shard, index or manifest that is missing, damaged or of another format."""


class UnreachableError(ShardError):
    """A place that does not answer, or lets nobody in: it says nothing of the files there, which may be whole."""

    exit_code = 1


class PackStopped(ForgeError):
    """Sharding was cut off; what is finished stays."""

    exit_code = 1


class TooManyBadTiles(ForgeError):
    """More than the allowed share of the tiles was unusable."""

    exit_code = 1
