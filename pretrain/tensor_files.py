"""The tensors of a checkpoint's files of one kind, wherever each lies."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from shards.errors import ForgeError


class CheckpointError(ForgeError):
    """A checkpoint that is damaged, missing where one was expected, or of another run; told on all ranks alike."""

    everywhere = True


class TensorFiles:
    """The tensors of all parts of one kind, read one by one."""

    def __init__(self, path: Path, kind: str) -> None:
        self._files = [safe_open(part, framework="pt") for part in sorted(path.glob(f"{kind}-*.safetensors"))]
        self._where = {name: file for file in self._files for name in file.keys()}

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def get(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            file.__exit__(None, None, None)
