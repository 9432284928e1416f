"""Mean losses of the sources of a run, over micro batches and ranks."""

import torch
from torch import Tensor

from pretrain import distributed


class SourceLosses:
    """Sums losses by source until they are logged; no value leaves the device before.

    Args:
        count: number of sources S.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._sums: Tensor | None = None

    def add(self, losses: Tensor, sources: Tensor) -> None:
        """Add the losses (B,) of one micro batch, and the sources (B,) of its samples."""
        if self._sums is None:
            self._sums = torch.zeros(2, self._count, device=losses.device)
        own = losses.detach().float()
        self._sums.index_add_(1, sources, torch.stack([own, torch.ones_like(own)]))

    def flush(self) -> list[float]:
        """Return the mean loss of each source since the last call, NaN without samples; every rank calls it."""
        if self._sums is None:
            return [float("nan")] * self._count
        with distributed.reading():
            sums, counts = distributed.all_reduce_sum(self._sums).tolist()
        self.reset()
        return [total / count if count else float("nan") for total, count in zip(sums, counts, strict=True)]

    def reset(self) -> None:
        """Discard all."""
        self._sums = None
