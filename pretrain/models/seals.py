"""The seal of a checkpoint: size and SHA-256 of each of its files, written last; with it, no file is left unread."""

from pathlib import Path
from typing import Any

from shards.arrays import read_json_value
from shards.names import plain_name

SEAL, STATE = "checkpoint.json", "state.json"


def read_seals(folder: Path) -> dict[str, dict[str, Any]]:
    """By file name, its ``size`` in bytes and ``sha256``.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError: there is no seal, or it is none; or it names a file
            outside the folder.
    """
    files = read_json_value((folder / SEAL).read_bytes())["files"]
    seals = {plain_name(name): {"size": seal["size"], "sha256": seal["sha256"]} for name, seal in files.items()}
    seals[STATE]  # without it, nothing is sealed
    return seals
