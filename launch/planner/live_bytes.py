"""Bytes of live tensors, counted while operations run: torch has no such counter for CPUs and fake tensors.

As in torch.distributed._tools.mem_tracker, every storage that an operation returns is counted once, and subtracted
when its last owner releases it.
"""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages of tensors that operations inside it touch.

    Attributes:
        now: bytes currently live.
        peak: maximum of ``now`` since the last `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            self._see(tensor)

    def restart(self) -> None:
        """Reset the peak."""
        self.peak = self.now

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            # the key can be reused only after this storage is gone, and by then this callback has run
            self._watched[key] = weakref.ref(storage, lambda _: self._drop(key))
        self._sizes[key] = size
        self.now += size - (known or 0)
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
        self._watched.pop(key, None)
