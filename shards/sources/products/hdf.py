"""Reading of HDF5 and NetCDF-4 files by h5py, with errors of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import SourceError

if TYPE_CHECKING:
    import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file."""


def is_hdf(path: Path) -> bool:
    """Return whether a file starts with the signature of HDF5."""
    try:
        with open(path, "rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


@contextmanager
def open_hdf(path: Path) -> Iterator["h5py.File"]:
    """Open a file for reading; raises SourceError if it is truncated or damaged."""
    import h5py  # imported here: most sources are no HDF5

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"{path}: truncated or damaged ({_reason(error)}): download it again") from None
    with file:
        yield file


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn the errors that h5py raises for damaged structures, of several kinds, into a SourceError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path}: damaged ({_reason(error)}): download it again") from None


def dataset(file: "h5py.File", name: str, where: Path, dimensions: int) -> "h5py.Dataset":
    """Return a dataset; raises SourceError if it is missing or has another number of dimensions."""
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise SourceError(f"{where}: has no dataset {name}: download it again")
    if found.ndim != dimensions:
        raise SourceError(f"{where}: {name} has {found.ndim} dimensions, expected {dimensions}")
    return found


def numbers(values: Any, name: str, where: Path) -> np.ndarray:
    """Return an attribute or a small dataset as float64 numbers; raises SourceError if they are missing or no numbers.

    Args:
        values: value of the attribute or dataset; None if it is missing.
        name: its name in messages.
    """
    try:
        if values is None:
            raise ValueError("missing")
        return np.asarray(values[()] if hasattr(values, "shape") else values, dtype=np.float64)
    except (TypeError, ValueError, OSError) as error:
        raise SourceError(f"{where}: {name} can't be read ({_reason(error)}): download it again") from None


def number(values: Any, name: str, where: Path) -> float:
    """Return an attribute as one number; raises SourceError like `numbers`."""
    found = numbers(values, name, where).ravel()
    if len(found) != 1 or not np.isfinite(found[0]):
        raise SourceError(f"{where}: {name} is not a number: download it again")
    return float(found[0])


def text(value: Any) -> str:
    """Return an attribute as text; empty if it is missing."""
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return value.decode(errors="replace").strip() if isinstance(value, bytes) else str(value or "").strip()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
