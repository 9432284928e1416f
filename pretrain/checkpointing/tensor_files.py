"""The tensors in a checkpoint's files of one kind, such as ``weights``."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.resilience.guard import Diverged
from pretrain.weights.checkpoint_files import TENSOR_INDEX, tensor_and_start
from pretrain.weights.finite import find_non_finite
from shards.errors import ForgeError
from shards.files.names import plain_name
from shards.files.untrusted import read_json_value

OLD_PREFIXES = {"normalise.": "normalize."}
"""Module names of earlier versions and what they are called now."""

Shape = tuple[int, ...]


class CheckpointError(ForgeError):
    """A checkpoint is damaged, missing, or of another run; raised on all ranks."""

    everywhere = True


class NonFiniteState(Diverged):
    """Weights, moments or statistics are NaN or infinite; they are neither saved nor loaded."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor is: its name there, its shape, and the files that hold it with the first element in each."""

    stored: str
    shape: Shape
    files: list[tuple[int, str]]


class _OpenFile:
    """A file with the entries of each tensor in it, in order: (first element, name of the entry)."""

    def __init__(self, path: Path) -> None:
        self.handle = safe_open(path, framework="pt")
        self.entries: dict[str, list[tuple[int, str]]] = {}
        for entry in self.handle.keys():
            name, start = tensor_and_start(entry)
            self.entries.setdefault(name, []).append((start or 0, entry))
        for parts in self.entries.values():
            parts.sort()


class TensorFiles:
    """The tensors of all files of one kind, read as a whole or in part; a file is opened when it is first needed.

    Reading raises NonFiniteState for NaN and infinity, and CheckpointError for a file that can't be read.

    Args:
        path: folder of the checkpoint.
        kind: of the files.
        find: from a file of the folder to where it is read.

    Attributes:
        opened: number of files that were opened.
        bytes_read: bytes of tensors that were read.
    """

    def __init__(self, path: Path, kind: str, find: Callable[[Path], Path] = lambda file: file) -> None:
        self._path, self._kind, self._find = path, kind, find
        self._open: dict[str, _OpenFile] = {}
        self.opened = self.bytes_read = 0
        stored = self._read_index() if (path / TENSOR_INDEX).exists() else self._read_headers()
        self._where = {_current_name(place.stored): place for place in stored}

    @property
    def names(self) -> set[str]:
        return set(self._where)

    @property
    def renamed(self) -> bool:
        """Whether some names are of an earlier version, so that a hash over names doesn't apply."""
        return any(name != place.stored for name, place in self._where.items())

    def shape(self, name: str) -> Shape:
        return self._where[name].shape

    def get(self, name: str) -> Tensor:
        """Return a whole tensor."""
        return self.slice(name, 0, prod(self.shape(name))).view(self.shape(name))

    def slice(self, name: str, start: int, count: int) -> Tensor:
        """Return ``count`` elements of a tensor from number ``start`` on, flat; only files with some are opened."""
        place, end = self._where[name], start + count
        firsts = [first for first, _ in place.files]
        found = []
        for (first, file), limit in zip(place.files, [*firsts[1:], prod(place.shape)], strict=True):
            if max(first, start) < min(limit, end) or prod(place.shape) == 0:
                found += self._read_file(file, place.stored, start, end)
        tensor = torch.cat(found) if len(found) != 1 else found[0]
        if tensor.numel() != count:
            raise CheckpointError(f"{self._path}: {self._kind} {name} is incomplete; use another checkpoint")
        problem = find_non_finite({name: tensor})
        if problem is not None:  # saved by a version that didn't look
            raise NonFiniteState(
                f"{self._path}: diverged: {self._kind}: {problem}: move this checkpoint away to continue from the "
                "previous one"
            )
        return tensor

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._open.values():
            file.handle.__exit__(None, None, None)

    def _read_file(self, name: str, tensor: str, start: int, end: int) -> list[Tensor]:
        """Return the elements ``start`` to ``end`` of a tensor that are in one file."""
        found = []
        try:
            file = self._file(name)
            for first, entry in file.entries.get(tensor, []):
                part = file.handle.get_slice(entry)
                count = prod(part.get_shape())
                low, high = max(start - first, 0), min(end - first, count)
                if low < high or count == 0:
                    found.append(self._read(part, low, high))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._path / name}: can't be read ({error}); use another checkpoint") from None
        return found

    def _read(self, part: Any, low: int, high: int) -> Tensor:
        """Return some elements of an entry, flat; whole rows of its first dimension are read."""
        shape = part.get_shape()
        if not shape or 0 in shape:
            rows, row = part[...], 1
            low_row = 0
        else:
            row = prod(shape[1:])
            low_row = low // row
            rows = part[low_row : -(-high // row)]
        self.bytes_read += rows.nbytes
        return rows.flatten()[low - low_row * row : high - low_row * row]

    def _file(self, name: str) -> _OpenFile:
        if name not in self._open:
            self.opened += 1
            self._open[name] = _OpenFile(self._find(self._path / name))
        return self._open[name]

    def _read_index(self) -> list[_Place]:
        try:
            tensors = read_json_value((self._path / TENSOR_INDEX).read_bytes()).get(self._kind, {})
            return [
                _Place(name, tuple(one["shape"]), [(first, plain_name(file)) for first, file in one["files"]])
                for name, one in tensors.items()
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self._path / TENSOR_INDEX}: can't be read ({error}): use another checkpoint"
            ) from None

    def _read_headers(self) -> list[_Place]:
        """Open all files, as before there was an index: each tensor is whole."""
        names = sorted(part.name for part in self._path.glob(f"{self._kind}-*.safetensors"))
        return [
            _Place(stored, tuple(file.handle.get_slice(stored).get_shape()), [(0, name)])
            for name, file in ((name, self._file(name)) for name in names)
            for stored in file.entries
        ]


def _current_name(stored: str) -> str:
    for old, new in OLD_PREFIXES.items():
        if stored.startswith(old):
            return new + stored.removeprefix(old)
    return stored
