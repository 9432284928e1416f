"""The tensors in a checkpoint's files of one kind, such as ``weights``."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from pretrain.resilience.guard import Diverged
from pretrain.weights.finite import find_non_finite
from shards.errors import ForgeError

OLD_PREFIXES = {"normalise.": "normalize."}
"""Module names of earlier versions and what they are called now."""


class CheckpointError(ForgeError):
    """A checkpoint is damaged, missing, or of another run; raised on all ranks."""

    everywhere = True


class NonFiniteState(Diverged):
    """Weights, moments or statistics are NaN or infinite; they are neither saved nor loaded."""


class TensorFiles:
    """The tensors of all files of one kind, read one by one; `get` raises NonFiniteState for NaN and infinity."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind
        self._files = [safe_open(part, framework="pt") for part in sorted(path.glob(f"{kind}-*.safetensors"))]
        self._where = {_current_name(name): (file, name) for file in self._files for name in file.keys()}

    @property
    def names(self) -> set[str]:
        return set(self._where)

    @property
    def renamed(self) -> bool:
        """Whether some names are of an earlier version, so that a hash over names doesn't apply."""
        return any(name != stored for name, (_, stored) in self._where.items())

    def get(self, name: str) -> Tensor:
        file, stored = self._where[name]
        tensor = file.get_tensor(stored)
        problem = find_non_finite({name: tensor})
        if problem is not None:  # saved by a version that didn't look
            raise NonFiniteState(
                f"{self._path}: diverged: {self._kind}: {problem}: move this checkpoint away to continue from the "
                "previous one"
            )
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._where[name]
        return tuple(file.get_slice(stored).get_shape())

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            file.__exit__(None, None, None)


def _current_name(stored: str) -> str:
    for old, new in OLD_PREFIXES.items():
        if stored.startswith(old):
            return new + stored.removeprefix(old)
    return stored
