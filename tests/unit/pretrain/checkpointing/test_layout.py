"""Files of made-up worlds: how many there are, and what a rank opens and reads to load its part of a state."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpointing.layout import FILES, Layout, TensorSpec
from pretrain.checkpointing.tensor_files import CheckpointError, TensorFiles
from pretrain.weights.checkpoint_files import TENSOR_INDEX

SPECS = {f"blocks.{number}.weight": TensorSpec(torch.float32, (96, 64)) for number in range(6)}
SPECS |= {f"blocks.{number}.bias": TensorSpec(torch.float32, (96,)) for number in range(6)}
SPECS |= {"token": TensorSpec(torch.float32, (1, 1, 64)), "scale": TensorSpec(torch.float32, ())}
BUFFERS = {"queue": TensorSpec(torch.float32, (8, 16)), "seen": TensorSpec(torch.int64, ())}
BUFFERS |= {"flags": TensorSpec(torch.bool, (3,))}
VALUES = {
    name: (torch.randn if spec.dtype.is_floating_point else torch.ones)(spec.shape).to(spec.dtype)
    for name, spec in (SPECS | BUFFERS).items()
}
BYTES = sum(value.nbytes for value in VALUES.values())


def even(world: int) -> list[np.ndarray]:
    """Return the pieces of all ranks where each has 1/N of each parameter, and rank 0 the buffers."""
    ranks = []
    for rank in range(world):
        rows = []
        for number, spec in enumerate(SPECS.values()):
            size = -(-spec.numel // world)
            start = min(rank * size, spec.numel)
            rows.append((number, start, min(size, spec.numel - start)))
        whole = [(len(SPECS) + number, 0, spec.numel) for number, spec in enumerate(BUFFERS.values()) if rank == 0]
        ranks.append(np.array([row for row in [*rows, *whole] if row[2]], np.int64).reshape(-1, 3))
    return ranks


def flat(world: int) -> list[np.ndarray]:
    """Return the pieces of all ranks where each has 1/N of all parameters in a row, as under ZeRO-1 and 2."""
    edges = np.cumsum([0, *(spec.numel for spec in SPECS.values())])
    size = -(-int(edges[-1]) // world)
    ranks = []
    for rank in range(world):
        rows = []
        for number, (begin, end) in enumerate(pairwise(edges)):
            low, high = max(begin, rank * size), min(end, (rank + 1) * size)
            if low < high:
                rows.append((number, low - begin, high - low))
        whole = [(len(SPECS) + number, 0, spec.numel) for number, spec in enumerate(BUFFERS.values()) if rank == 0]
        ranks.append(np.array([*rows, *whole], np.int64).reshape(-1, 3))
    return ranks


def write(folder: Path, pieces: list[np.ndarray]) -> Layout:
    """Write the files of all ranks."""
    folder.mkdir(exist_ok=True)
    layout = Layout("weights", SPECS | BUFFERS, pieces)
    for number, name in enumerate(layout.file_names):
        file = layout.file_of(number * -(-len(pieces) // len(layout.file_names)))
        assert file.name == name
        content = bytearray(file.header)
        for entry in file.entries:
            assert entry.offset == len(content)
            itemsize = VALUES[entry.name].element_size()
            values = VALUES[entry.name].flatten()[entry.start : entry.start + entry.nbytes // itemsize]
            content += values.numpy().tobytes()
        (folder / name).write_bytes(content)
    (folder / TENSOR_INDEX).write_text(json.dumps({"weights": layout.index}))
    return layout


@pytest.mark.parametrize("divide", [even, flat])
@pytest.mark.parametrize("world", [1, 3, 8, 64, 1024])
def test_every_world_writes_few_files_from_which_each_tensor_is_read(tmp_path: Path, world: int, divide) -> None:
    layout = write(tmp_path, divide(world))
    assert len(layout.file_names) <= min(world, FILES)  # 3 kinds, random generators and 3 small files: 196 at most
    with TensorFiles(tmp_path, "weights") as files:
        assert files.names == VALUES.keys()
        assert files.opened == 0
        for name, value in VALUES.items():
            assert files.shape(name) == value.shape
            assert torch.equal(files.get(name), value), name


@pytest.mark.parametrize("world", [8, 64, 1024])
def test_a_rank_of_the_same_world_opens_its_own_file_and_reads_its_share(tmp_path: Path, world: int) -> None:
    pieces = even(world)
    write(tmp_path, pieces)
    for rank in (1, world // 2, world - 1):
        with TensorFiles(tmp_path, "weights") as files:
            read_pieces(files, pieces[rank])
            assert files.opened == 1
            assert files.bytes_read == 4 * pieces[rank][:, 2].sum()


@pytest.mark.parametrize(
    ("saved", "loaded", "opens"), [(8, 64, 2), (64, 8, 16), (8, 3, 5), (1024, 64, 3), (64, 1024, 3)]
)
def test_a_rank_of_another_world_opens_the_files_that_overlap_its_share(
    tmp_path: Path, saved: int, loaded: int, opens: int
) -> None:
    write(tmp_path, even(saved))
    for rank, pieces in enumerate(even(loaded)):
        if rank and rank % max(1, loaded // 8) == 0:
            with TensorFiles(tmp_path, "weights") as files:
                read_pieces(files, pieces)
                assert files.opened <= opens
                assert files.bytes_read == 4 * pieces[:, 2].sum()


def test_from_a_single_process_a_rank_reads_the_rows_that_hold_its_share(tmp_path: Path) -> None:
    write(tmp_path, even(1))
    with TensorFiles(tmp_path, "weights") as files:
        read_pieces(files, even(8)[3])
        assert files.opened == 1
        assert files.bytes_read < BYTES / 6


def read_pieces(files: TensorFiles, pieces: np.ndarray) -> None:
    names = list(VALUES)
    for number, start, count in pieces.tolist():
        expected = VALUES[names[number]].flatten()[start : start + count]
        assert torch.equal(files.slice(names[number], start, count), expected)


def test_a_file_of_whole_tensors_has_their_names_and_shapes(tmp_path: Path) -> None:
    layout = write(tmp_path, even(1))
    found = load_file(tmp_path / layout.file_names[0])
    assert found.keys() == VALUES.keys()
    assert all(torch.equal(found[name], value) for name, value in VALUES.items())


def test_ranks_that_do_not_hold_the_whole_of_a_tensor_are_refused() -> None:
    pieces = even(2)
    pieces[1] = pieces[1][1:]
    with pytest.raises(ValueError, match=r"the ranks hold 3072 of 6144 elements of weights blocks\.0\.weight"):
        Layout("weights", SPECS | BUFFERS, pieces)


@pytest.mark.parametrize("text", ["", "[]", '{"weights": 3}', '{"weights": {"a": {}}}', '{"weights": {"a": 5}}'])
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / TENSOR_INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: can't be read"):
        TensorFiles(tmp_path, "weights")
