"""Maps of several layers of an encoder in one tensor."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LayerShape(NamedTuple):
    """Shape of a layer's map.

    Attributes:
        width: D, channels.
        stride: pixels per side of a position.
    """

    width: int
    stride: int


def spaced_layers(depth: int, count: int = 4) -> tuple[int, ...]:
    """Return the numbers of ``count`` evenly spaced layers of ``depth``, the last one included; at most all."""
    count = min(count, depth)
    return tuple((number + 1) * depth // count - 1 for number in range(count))


def fold_layers(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate maps on the grid of the last one, without loss.

    Args:
        maps: (B, D_i, h_i, w_i), where h_i and w_i are r_i times those of the last map.

    Returns:
        (B, sum of D_i r_i^2, h, w): a position holds all positions of the finer maps that lie in it.

    Raises:
        ValueError: a grid is not a multiple of the last one.
    """
    height, width = maps[-1].shape[2:]
    for each in maps:
        ratio = each.shape[2] // height
        if each.shape[2:] != (ratio * height, ratio * width):
            grid = " x ".join(map(str, each.shape[2:]))
            raise ValueError(f"a layer's map of {grid} positions is no multiple of the last one's, {height} x {width}")
    return torch.cat([F.pixel_unshuffle(each, each.shape[2] // height) for each in maps], 1)


def folded_width(shapes: Sequence[LayerShape]) -> int:
    """Return the channels of folded maps."""
    return sum(_folded_widths(shapes))


def unfold_layers(folded: Tensor, shapes: Sequence[LayerShape]) -> list[Tensor]:
    """Return the maps that `fold_layers` concatenated."""
    parts = folded.split(_folded_widths(shapes), 1)
    last = shapes[-1].stride
    return [F.pixel_shuffle(part, last // shape.stride) for part, shape in zip(parts, shapes, strict=True)]


def _folded_widths(shapes: Sequence[LayerShape]) -> list[int]:
    return [shape.width * (shapes[-1].stride // shape.stride) ** 2 for shape in shapes]
