"""The tensors of a checkpoint's files of one kind, wherever each lies."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from pretrain.resilience.guard import Diverged
from pretrain.weights.finite import find_non_finite
from shards.errors import ForgeError


class CheckpointError(ForgeError):
    """A checkpoint that is damaged, missing where one was expected, or of another run; told on all ranks alike."""

    everywhere = True


class NonFiniteState(Diverged):
    """Weights, moments or statistics that are NaN or infinite: not saved, and not loaded."""


class TensorFiles:
    """The tensors of all parts of one kind, read one by one; NonFiniteState for one with NaN or infinity."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind
        self._files = [safe_open(part, framework="pt") for part in sorted(path.glob(f"{kind}-*.safetensors"))]
        self._where = {name: file for file in self._files for name in file.keys()}

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def get(self, name: str) -> Tensor:
        tensor = self._where[name].get_tensor(name)
        problem = find_non_finite({name: tensor})
        if problem is not None:  # saved by a version that didn't look
            raise NonFiniteState(
                f"{self._path}: diverged: {self._kind}: {problem}: move this checkpoint away to go on from the one "
                "before it"
            )
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            file.__exit__(None, None, None)
