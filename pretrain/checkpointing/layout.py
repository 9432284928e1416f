"""How the tensors of a checkpoint lie in its files.

Every rank writes the pieces that it holds, one after another, and no more than `FILES` groups of neighboring ranks have
a file of their own: 1,024 ranks write 64 files of weights. A piece that is a whole tensor has its name and shape in the
file; part of one is named ``tensor@start``, after the number of its first element, and is flat.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch

from pretrain.weights.checkpoint_files import PART

FILES = 64
"""Files of one kind in a checkpoint, at most."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorSpec:
    """A whole tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Entry:
    """A piece of a tensor in a file.

    Attributes:
        rank: that writes it.
        name: of the tensor.
        start: number of its first element in the tensor.
        offset, nbytes: its place in the file.
    """

    rank: int
    name: str
    start: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class FileLayout:
    """A file, which its first rank begins with the header.

    Attributes:
        ranks: that write to it.
        header: of the safetensors format.
    """

    name: str
    ranks: range
    header: bytes
    entries: tuple[Entry, ...]


class Layout:
    """The files of one kind.

    Args:
        kind: such as ``weights``.
        specs: of all tensors by name, in the same order on all ranks.
        pieces: for each rank, the pieces that it holds: (n, 3), number of the tensor in ``specs``, first element,
            number of elements. They follow each other in the order of ranks.
        files: largest number of files.

    Raises:
        ValueError: the pieces are not the whole of a tensor.
    """

    def __init__(
        self, kind: str, specs: Mapping[str, TensorSpec], pieces: Sequence[np.ndarray], files: int = FILES
    ) -> None:
        self.specs, self.pieces = dict(specs), pieces
        self._names = list(specs)
        self._per_file = -(-len(pieces) // files)
        count = -(-len(pieces) // self._per_file)
        self.file_names = [f"{kind}-{number:05d}-of-{count:05d}.safetensors" for number in range(count)]
        self._files: dict[int, FileLayout] = {}
        held = np.zeros(len(self._names), np.int64)
        for rows in pieces:
            np.add.at(held, rows[:, 0], rows[:, 2])
        for name, count in zip(self._names, held.tolist(), strict=True):
            if count != self.specs[name].numel:
                raise ValueError(f"the ranks hold {count} of {self.specs[name].numel} elements of {kind} {name}")

    def file_of(self, rank: int) -> FileLayout:
        """Return the file that a rank writes to."""
        number = rank // self._per_file
        if number not in self._files:
            self._files[number] = self._file(number)
        return self._files[number]

    def _file(self, number: int) -> FileLayout:
        ranks = range(number * self._per_file, min((number + 1) * self._per_file, len(self.pieces)))
        rows = [(rank, *map(int, row)) for rank in ranks for row in self.pieces[rank]]
        rows.sort(key=lambda row: -self._spec(row[1]).dtype.itemsize)  # for alignment; the order of ranks remains
        header: dict[str, Any] = {}
        ends = [0]
        for _, tensor, start, count in rows:
            name, spec = self._names[tensor], self._spec(tensor)
            ends.append(ends[-1] + count * spec.dtype.itemsize)
            whole = count == spec.numel
            header[name if whole else f"{name}{PART}{start}"] = {
                "dtype": _DTYPES[spec.dtype],
                "shape": list(spec.shape) if whole else [count],
                "data_offsets": ends[-2:],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        begin = 8 + len(text)
        entries = tuple(
            Entry(rank, self._names[tensor], start, begin + offset, end - offset)
            for (rank, tensor, start, _), offset, end in zip(rows, ends, ends[1:], strict=False)
        )
        return FileLayout(self.file_names[number], ranks, struct.pack("<Q", len(text)) + text, entries)

    @cached_property
    def index(self) -> dict[str, Any]:
        """The tensors by name: dtype, shape, and the files that hold them, as (number of first element, file)."""
        where: dict[str, list[tuple[int, str]]] = {name: [] for name in self._names}
        for number, file in enumerate(self.file_names):
            ranks = slice(number * self._per_file, (number + 1) * self._per_file)
            rows = np.concatenate(self.pieces[ranks])
            rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
            for tensor, first in zip(*np.unique(rows[:, 0], return_index=True), strict=True):
                where[self._names[tensor]].append((int(rows[first, 1]), file))
        return {
            name: {"dtype": _DTYPES[spec.dtype], "shape": list(spec.shape), "files": sorted(where[name])}
            for name, spec in self.specs.items()
        }

    def _spec(self, tensor: int) -> TensorSpec:
        return self.specs[self._names[tensor]]
