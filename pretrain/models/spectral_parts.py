"""Parts of a batch of pixels (G groups, R pixels, ...), which the spectral adapter computes one after the other."""

from dataclasses import dataclass

import torch
from torch import Tensor

PIXELS = {"cpu": 256, "cuda": 131_072}
"""Pixels of a part by device: their activations fit a core's cache, or fill a GPU (2 GB in half precision)."""


@dataclass(frozen=True)
class Part:
    """Whole groups, or some pixels of one group."""

    groups: slice
    pixels: slice

    def of(self, x: Tensor) -> Tensor:
        """Return a view of the part of x (G, R, ...)."""
        return x[self.groups, self.pixels]


def split_parts(x: Tensor) -> list[Part]:
    """Divide x (G, R, ...) into parts of at most so many pixels as its device computes at once."""
    groups, pixels = x.shape[:2]
    limit = PIXELS.get(x.device.type, PIXELS["cuda"])
    together, size = max(limit // pixels, 1), min(limit, pixels)
    return [
        Part(slice(group, group + together), slice(pixel, pixel + size))
        for group in range(0, groups, together)
        for pixel in range(0, pixels, size)
    ]


def widened(x: Tensor) -> Tensor:
    """Return x in fp32 or better."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
