"""Labeled tiles as windows of the encoder's input size: labels in memory, images read on demand."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from finetune.data.hashes import array_hash, digest
from finetune.data.items import Item
from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of
from shards.errors import SourceError
from shards.progress import progress
from shards.sensors.sensor import NODATA

VIEWS = 8
"""Number of flips and rotations of a square."""


class LabeledSplit:
    """One split of a task.

    If every pixel has a label, a tile is cut into windows, and its border is padded with missing values that don't
    count. If a tile has one label, it is one window: floating-point tiles are resized (HYPERVIEW's vary in size),
    others already have the window size.

    Args:
        items: tiles of the split.
        size: window size in pixels.
        threads: number of reader threads.
        keep: whether to keep images in memory after reading them.
        quiet: whether to hide the progress bar.

    Attributes:
        labels: (N, ...) labels as the task's kind encodes them.
        tile_of: (N,) index into ``items`` of each window; tiles that the kind leaves out have no windows.
        declared: class codes that a label file declares as its nodata value; they don't count.

    Raises:
        SourceError, TileError: a label is missing, unreadable, of unexpected size, or refused by the kind.
    """

    def __init__(self, items: Sequence[Item], task: Task, size: int, threads: int, keep: bool, quiet: bool) -> None:
        self.items, self.task, self.kind, self.size = items, task, kind_of(task), size
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._keep, self._kept = keep, dict[int, np.ndarray]()
        self._lock = threading.Lock()
        self.declared: set[int] = set()
        read = list(progress("read labels", len(items), self._pool.map(self._labels_of, items), show=not quiet))
        self.items = [item for item, (labels, _, _) in zip(items, read, strict=True) if len(labels)]
        read = [entry for entry in read if len(entry[0])]
        if not read:
            raise SourceError(f"{items[0].name} and {len(items) - 1} more: no tile of this split has a label")
        self.labels = np.concatenate([labels for labels, _, _ in read])
        counts = [len(labels) for labels, _, _ in read]
        self.tile_of, self._first = np.repeat(np.arange(len(read)), counts), np.cumsum([0, *counts])
        self._columns, self._label_hashes = (
            [columns for _, columns, _ in read],
            [label_hash for _, _, label_hash in read],
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labels_hash(self) -> str:
        """Hash of the names and labels of all tiles as the task reads them, independent of the window size."""
        return digest(
            [[item.name, label_hash] for item, label_hash in zip(self.items, self._label_hashes, strict=True)]
        )

    @property
    def images_hash(self) -> str:
        """Hash of the names and images of all tiles."""
        return digest([[item.name, image_hash] for item, image_hash in zip(self.items, self.image_hashes, strict=True)])

    @cached_property
    def image_hashes(self) -> list[str]:
        """Hashes of the tiles' images; set by the caller if they are cached (finetune/data/contents.py)."""
        return self.hash_images(range(len(self.items)))

    def hash_images(self, indices: Sequence[int]) -> list[str]:
        """Return the image hashes of tiles ``indices``; images are kept in memory as in any other read."""
        return list(self._pool.map(self._hash_image, indices))

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Return windows (n, bands, S, S), int16, or float32 if tiles are resized.

        Raises:
            TileError, SourceError: an image is unreadable, has other bands, or differs in size from its label.
        """
        tiles = np.unique(self.tile_of[rows])
        read = dict(zip(tiles.tolist(), self._pool.map(self._tile, tiles.tolist()), strict=True))
        return np.stack([self._window(read[int(self.tile_of[row])], int(row)) for row in rows])

    def batches(self, orders: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the `images` of each array of rows, reading the next ones in the background."""
        with ThreadPoolExecutor(1) as ahead:
            pending = None
            for rows in orders:
                following = ahead.submit(self.images, rows)
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()

    def oriented(self, rows: np.ndarray, orientations: np.ndarray) -> np.ndarray:
        """Return `images`, each flipped or rotated as `orient` does."""
        return np.stack(
            [
                orient(image, int(orientation))
                for image, orientation in zip(self.images(rows), orientations, strict=True)
            ]
        )

    # ---- one tile ----

    def _labels_of(self, item: Item) -> tuple[np.ndarray, int, str]:
        """Return the labels of an item's windows (empty leaves it out), windows per row, and a hash of its labels."""
        raw = item.label()
        problem = self.kind.find_problem(raw)
        if problem:
            raise SourceError(f"{item.name}: {problem}")
        if (raw == NODATA).any() and not self.declared:
            self.declared |= self.task.class_codes & {item.nodata()}
        labels = self.kind.encode(raw)
        if labels is None:
            nothing = np.zeros(0, self.kind.label_type)
            return nothing, 1, array_hash(nothing)
        if not self.kind.is_dense:
            return labels[None], 1, array_hash(labels[None])
        return cut(labels, self.size, self.kind.fill), -(-labels.shape[-1] // self.size), array_hash(labels)

    def _tile(self, number: int) -> np.ndarray:
        with self._lock:
            kept = self._kept.get(number)
        return self._fitted(number, self.items[number].image()) if kept is None else kept

    def _hash_image(self, number: int) -> str:
        values = self.items[number].image()
        self._fitted(number, values)
        return array_hash(values)

    def _fitted(self, number: int, values: np.ndarray) -> np.ndarray:
        """Return a tile's image, ready to be cut into windows; store it if images are kept in memory."""
        ready = self._fit(self.items[number], values)
        if self._keep:
            with self._lock:
                self._kept[number] = ready
        return ready

    def _fit(self, item: Item, values: np.ndarray) -> np.ndarray:
        if not self.kind.is_dense:
            if values.dtype == np.float32:
                return resize(values, self.size)
            if values.shape[1:] != (self.size, self.size):
                raise SourceError(f"{item.name}: {values.shape[1:]} px, but the other tiles are {self.size} px")
            return values
        return values

    def _window(self, tile: np.ndarray, row: int) -> np.ndarray:
        if not self.kind.is_dense:
            return tile
        number = int(self.tile_of[row])
        index = row - int(self._first[number])
        per_row = self._columns[number]
        top, left = index // per_row * self.size, index % per_row * self.size
        window = tile[:, top : top + self.size, left : left + self.size]
        short = (self.size - window.shape[1], self.size - window.shape[2])
        if max(short) == self.size or min(short) < 0 or not all(window.shape):
            raise SourceError(f"{self.items[number].name}: the image is smaller than its label tile")
        return np.pad(window, ((0, 0), (0, short[0]), (0, short[1])), constant_values=NODATA) if any(short) else window


def cut(labels: np.ndarray, size: int, fill: float) -> np.ndarray:
    """Cut (..., H, W) into windows (n, ..., size, size), row by row; the border is padded with ``fill``."""
    height, width = labels.shape[-2:]
    rim = [(0, 0)] * (labels.ndim - 2) + [(0, -height % size), (0, -width % size)]
    padded = np.pad(labels, rim, constant_values=fill)
    rows, columns = padded.shape[-2] // size, padded.shape[-1] // size
    split = padded.reshape(*labels.shape[:-2], rows, size, columns, size)
    return np.moveaxis(split, (-4, -2), (0, 1)).reshape(-1, *labels.shape[:-2], size, size)


def resize(values: np.ndarray, size: int) -> np.ndarray:
    """Resize float32 (C, h, w) to (C, size, size), bicubic, aligned corners, as in the published HYPERVIEW reader."""
    return F.interpolate(torch.from_numpy(values)[None], (size, size), mode="bicubic", align_corners=True)[0].numpy()


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return one of the eight flips and rotations (0 to 7) of the last two axes; 0 is the array itself."""
    turned = np.rot90(array, orientation % 4, axes=(-2, -1))
    return np.ascontiguousarray(np.flip(turned, -1) if orientation >= 4 else turned)
