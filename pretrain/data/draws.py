"""Random draws of a micro batch: made on the host, ahead of the step that uses them on the device."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

Draws = dict[str, tuple[np.ndarray, ...]]
"""Draws of a micro batch by name."""


def to_device(arrays: Iterable[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Copy arrays to a device without waiting for it; on the CPU tensors share the arrays' memory.

    Copies from pageable memory would wait for all work that is queued on the device. Torch reuses a pinned buffer only
    after the copies from it are done.
    """
    tensors = map(torch.from_numpy, arrays)
    if device.type == "cpu":
        return tuple(tensors)
    return tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)
