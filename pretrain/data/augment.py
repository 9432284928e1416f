"""Views of tiles: crops, flips and blur in a single resampling on the device.

Draws are keyed by (seed, view, sample number), so they are the same on any rank and after any resume. They are made on
the host, while earlier batches are trained on. Cropping, bilinear resizing, mirroring and blurring are linear and
separable, so a view is ``rows @ image @ columns`` with two small matrices for each sample; crops that are not resampled
pick rows and columns and are exact.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.config.data import AugmentConfig
from pretrain.data.draws import to_device
from pretrain.registries import AUGMENTATIONS
from shards.order.random_bits import uniform

ASPECT = (3 / 4, 4 / 3)
"""Range of width / height of a resized crop."""

BLUR_SIGMA = (0.1, 2.0)
"""Range of the blur's standard deviation in pixels of the view, as in SpectralEarth's contrastive recipes."""

BLUR_RADIUS = 6
"""Radius of the blur kernel in pixels (a kernel of 13)."""


class Augmentation(ABC):
    """The interface of augmentations, which cut views from tiles; registered in AUGMENTATIONS.

    An augmentation is built from its config, the ``size`` of a view, and ``scale``: the range of the share of a tile's
    area that a view shows if the objective sets it (DINO's local crops), otherwise None.

    Attributes:
        size: height and width of a view in pixels.
        resamples: whether views interpolate the tile's pixels; images must then be floating-point.
    """

    size: int
    resamples: bool = True

    @abstractmethod
    def draw(self, samples: np.ndarray, key: int, tile_shape: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Draw one view of each tile; called in the thread that reads tiles.

        Args:
            samples: sample numbers (B,), which key the draws.
            key: key derived from the seed and the kind of view.
            tile_shape: (C, H, W).

        Returns:
            What `views` takes, arrays (B, ...).
        """

    def draw_each(
        self, samples: np.ndarray, key: int, tile_shapes: np.ndarray, image_shape: Sequence[int]
    ) -> tuple[np.ndarray, ...]:
        """Draw one view of each tile, where tiles of several sizes lie in the upper left corners of equal images.

        Args:
            samples, key: see `draw`.
            tile_shapes: (C, H, W) of each sample's tile, int64 (B, 3).
            image_shape: (C, H, W) of all images.

        Returns:
            What `draw` returns for tiles of ``image_shape``; what is longer there than for a smaller tile, such as the
            matrices of `resampling`, ends with zeros.
        """
        if (tile_shapes == np.asarray(image_shape)).all():
            return self.draw(samples, key, image_shape)
        draws = tuple(
            np.zeros((len(samples), *one.shape[1:]), one.dtype) for one in self.draw(samples[:1], key, image_shape)
        )
        for shape in np.unique(tile_shapes, axis=0):
            own = np.flatnonzero((tile_shapes == shape).all(1))
            for whole, part in zip(draws, self.draw(samples[own], key, shape.tolist()), strict=True):
                index: Any = (own, *map(slice, part.shape[1:]))
                whole[index] = part
        return draws

    @abstractmethod
    def views(self, images: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Cut one view of each image.

        Args:
            images: (B, C, H, W), normalized, missing values 0, float32, or float16 on GPUs unless precision is fp32;
                any dtype if views are not resampled.
            draws: of `draw`, on the images' device.

        Returns:
            (B, C, size, size), with the dtype of the images.
        """

    @abstractmethod
    def center_views(self, images: Tensor) -> Tensor:
        """Cut the deterministic evaluation view of images (B, C, H, W), (B, C, size, size)."""

    def mask_views(self, masks: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Cut masks (B, 1, H, W), 0 to 1, as `views` cuts images; override it if views change colors."""
        return self.views(masks, draws)

    def random_views(self, images: Tensor, samples: np.ndarray, key: int) -> Tensor:
        """Draw and cut one view of each image."""
        return self.views(images, to_device(self.draw(samples, key, images.shape[1:]), images.device))


@dataclass(frozen=True)
class Crop(Augmentation):
    """An augmentation that crops, mirrors and blurs.

    Attributes:
        size: height and width in pixels.
        crop_scale: range of the crop's share of the tile's area; None cuts ``size`` pixels without resampling.
        flip: whether to mirror each axis with probability 1/2.
        blur: probability of a Gaussian blur.
    """

    size: int
    crop_scale: tuple[float, float] | None = None
    flip: bool = True
    blur: float = 0.0

    @property
    def resamples(self) -> bool:  # type: ignore[override]
        return self.crop_scale is not None or self.blur > 0

    def draw(self, samples: np.ndarray, key: int, tile_shape: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Draw matrices of rows and columns, see `resampling`, or without resampling their positions, see `picks`."""
        _, height, width = tile_shape
        draws = uniform(key, samples, 8)
        boxes = np.array([crop_box(draw, height, width, self.size, self.crop_scale) for draw in draws])
        mirrored = (draws[:, 4:6] < 0.5) & self.flip
        if not self.resamples:
            return picks(boxes[:, 0], self.size, mirrored[:, 0]), picks(boxes[:, 1], self.size, mirrored[:, 1])
        low, high = BLUR_SIGMA
        sigma = np.where(draws[:, 6] < self.blur, low + draws[:, 7] * (high - low), 0.0)
        rows = resampling(boxes[:, 0], boxes[:, 2], height, self.size, mirrored[:, 0], sigma)
        columns = resampling(boxes[:, 1], boxes[:, 3], width, self.size, mirrored[:, 1], sigma)
        return rows, columns

    def views(self, images: Tensor, draws: Sequence[Tensor]) -> Tensor:
        rows, columns = draws
        return resample(images, rows, columns) if self.resamples else cut(images, rows, columns)

    def center_views(self, images: Tensor) -> Tensor:
        """Resize the full image, or cut its center without resampling."""
        batch, _, height, width = images.shape
        if self.crop_scale is not None and (height, width) == (self.size, self.size):
            return images
        if self.crop_scale is None:
            top, left = (height - self.size) // 2, (width - self.size) // 2
            return images[:, :, top : top + self.size, left : left + self.size]
        zeros, still = np.zeros(batch), np.zeros(batch, dtype=bool)
        rows = resampling(zeros, zeros + height, height, self.size, still, zeros)
        columns = resampling(zeros, zeros + width, width, self.size, still, zeros)
        return resample(images, *to_device((rows, columns), images.device))


def build_crop(config: AugmentConfig, size: int, scale: tuple[float, float] | None) -> Crop:
    """Build the default augmentation."""
    return Crop(size, config.crop_scale if scale is None else scale, config.flip, config.blur)


def build_augmentation(config: AugmentConfig, size: int, scale: tuple[float, float] | None = None) -> Augmentation:
    """Build the augmentation of a run; see `Augmentation`."""
    return AUGMENTATIONS[config.name](config, size, scale)


def crop_box(
    draw: np.ndarray, height: int, width: int, size: int, crop_scale: tuple[float, float] | None
) -> tuple[int, int, int, int]:
    """Return (top, left, rows, columns) in pixels from four numbers in [0, 1): area, aspect, top, left."""
    if crop_scale is None:
        rows, columns = size, size
    else:
        area = height * width * (crop_scale[0] + draw[0] * (crop_scale[1] - crop_scale[0]))
        aspect = math.exp(math.log(ASPECT[0]) + draw[1] * math.log(ASPECT[1] / ASPECT[0]))
        rows = min(height, max(1, round(math.sqrt(area / aspect))))
        columns = min(width, max(1, round(math.sqrt(area * aspect))))
    top = int(draw[2] * (height - rows + 1))
    left = int(draw[3] * (width - columns + 1))
    return top, left, rows, columns


def picks(begin: np.ndarray, size: int, mirrored: np.ndarray) -> np.ndarray:
    """Return the ``size`` positions from ``begin`` (B,) on one axis, int64 (B, size), reversed where mirrored (B,)."""
    steps = np.arange(size)
    return begin[:, None] + np.where(mirrored[:, None], steps[::-1], steps)


def cut(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick rows (B, h) and columns (B, w) of images (B, C, H, W), (B, C, h, w)."""
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resampling(
    begin: np.ndarray, length: np.ndarray, source: int, size: int, mirrored: np.ndarray, sigma: np.ndarray
) -> np.ndarray:
    """Build matrices float32 (B, size, source) that cut, resize bilinearly, mirror and blur one axis.

    Args:
        begin, length: start and length of the crop in source pixels (B,).
        mirrored: whether to flip the axis, bool (B,).
        sigma: standard deviation of the blur in target pixels (B,), 0 for none; edges are repeated.
    """
    batch = len(begin)
    position = (np.arange(size) + 0.5) * (np.asarray(length, dtype=np.float64) / size)[:, None] - 0.5
    position = position.clip(0, np.asarray(length)[:, None] - 1)  # like torch's interpolate: never beyond the crop
    below = np.floor(position).astype(np.int64)
    share = position - below
    above = np.minimum(below + 1, np.asarray(length, dtype=np.int64)[:, None] - 1)
    matrix = np.zeros((batch, size, source))
    sample, target, offset = np.arange(batch)[:, None], np.arange(size), np.asarray(begin, dtype=np.int64)[:, None]
    matrix[sample, target, offset + below] += 1 - share
    matrix[sample, target, offset + above] += share
    matrix[mirrored] = matrix[mirrored, ::-1]
    for number in np.flatnonzero(sigma):
        matrix[number] = _blur(size, sigma[number]) @ matrix[number]
    return matrix.astype(np.float32)


def _blur(size: int, sigma: float) -> np.ndarray:
    """Build the matrix (size, size) of a Gaussian blur with a kernel of 2 * BLUR_RADIUS + 1; edges are repeated."""
    taps = np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size, size))
    target = np.arange(size)
    for tap, weight in zip(taps, weights, strict=True):
        np.add.at(matrix, (target, (target + tap).clip(0, size - 1)), weight)
    return matrix


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute rows @ image @ columns^T for every band: (B, C, H, W), (B, h, H), (B, w, W) to (B, C, h, w).

    These are two products for each sample, of all bands together. Results are in the order (B, w, C, h) in memory:
    that saves copies.
    """
    batch, bands, height, _ = images.shape
    rows, columns = rows.to(images.dtype), columns.to(images.dtype)
    resized = columns @ images.flatten(1, 2).transpose(1, 2)  # (B, w, C * H)
    views = resized.view(batch, -1, height) @ rows.transpose(1, 2)  # (B, w * C, h)
    return views.view(batch, columns.shape[1], bands, -1).permute(0, 2, 3, 1)
