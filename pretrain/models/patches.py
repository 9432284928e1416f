"""Patches of images and their positions: cutting, sine-cosine tables, interpolation, gathering.

Shapes: B samples, T patches of the grid, V visible ones, C bands, p patch size, D width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, T, p*p, C): the pixels of each patch, row by row, spectra last."""
    batch, bands, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.view(batch, bands, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size, bands)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens (B, T, ...) by ids (B, V) to (B, V, ...)."""
    index = ids.view(*ids.shape, *[1] * (tokens.dim() - 2)).expand(-1, -1, *tokens.shape[2:])
    return tokens.gather(1, index)


def sincos_positions(width: int, grid: int) -> Tensor:
    """Build sine-cosine positions (1, 1 + grid*grid, width), zeros for the class token (MAE, arXiv 2111.06377)."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], 1)  # (grid, width / 2)
    columns = axis[None, :, :].expand(grid, grid, -1)
    rows = axis[:, None, :].expand(grid, grid, -1)
    table = torch.cat([columns, rows], -1).reshape(1, grid * grid, width)
    return torch.cat([torch.zeros(1, 1, width, dtype=torch.float64), table], 1).float()


def fit_positions(name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate a table of positions to the square grid of another shape; return any other tensor unchanged."""
    if tuple(value.shape) == tuple(shape) or not are_positions(name, value.shape, shape):
        return value
    side = math.isqrt(shape[1] - 1)
    return resize_positions(value, (side, side))


def are_positions(name: str, *shapes: Sequence[int]) -> bool:
    """Return whether a weight is a table of positions that can be interpolated between these shapes."""
    squares = [len(shape) == 3 and shape[1] > 1 and math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1 for shape in shapes]
    return name.endswith("pos_embed") and all(squares) and len({shape[-1] for shape in shapes}) == 1


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate position embeddings (1, 1 + s*s, D) to another grid; the class token's is unchanged.

    Bicubic with antialiasing, as DINOv2 and timm resample them.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if grid == (side, side):
        return positions
    cls, patches = positions[:, :1], positions[:, 1:]
    square = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([cls, resized.flatten(2).transpose(1, 2).to(cls.dtype)], 1)
