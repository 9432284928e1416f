"""Arrays and JSON from untrusted bytes: no pickled objects, and no more memory than the bytes can fill."""

import io
import json
import math
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from shards.files.text import decode_text

UNPACKED, TIMES = 256 << 20, 100
"""An ``.npz`` file may unpack to 256 MiB plus 100 times its size: count tables compress well, zip bombs far better."""


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_json_value(data: bytes | str) -> Any:
    """Parse JSON text in UTF-8 or in the encoding of its byte order mark.

    Raises:
        ValueError: if the text is not valid JSON, has a duplicate key or is nested too deeply.
    """
    try:
        text = data if isinstance(data, str) else decode_text(data)
        return json.loads(text, object_pairs_hook=_unique_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key '{twice[:80]}' is given twice")
    return values


def read_npy(data: bytes) -> np.ndarray:
    """Read an array from ``.npy`` bytes; raises ValueError if they hold no array, objects, or too few bytes."""
    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        shape, _, dtype = _HEADERS[version](file)
        claimed, held = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
        if any(length < 0 for length in shape) or claimed > held:
            raise ValueError(f"its header claims {claimed} bytes, but {held} follow")
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python: damage can raise any error
        raise ValueError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None


def check_zipped(member: zipfile.ZipInfo, size: int) -> None:
    """Raise ValueError if reading a member of a zip file of ``size`` bytes would allocate memory for a false size."""
    if member.compress_size > size:
        raise ValueError(f"{member.filename[:80]!r} claims {member.compress_size} bytes of a file of {size}")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):  # LZMA's dictionary
        raise ValueError(f"{member.filename[:80]!r} has packing {member.compress_type}: zip it again with deflate")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged, holds objects or unpacks to far more than such files do.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            allowed = UNPACKED + TIMES * path.stat().st_size
            for member in members:
                check_zipped(member, path.stat().st_size)
            if sum(member.file_size for member in members) > allowed:
                raise ValueError(f"it would unpack to more than {allowed >> 20} MiB")
            return {member.filename.removesuffix(".npy"): read_npy(file.read(member)) for member in members}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and zlib raise many types of errors
        raise ValueError(f"{path.name}: {' '.join(str(error).split()) or type(error).__name__}") from None
