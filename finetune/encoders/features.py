"""Features of a frozen encoder, computed once per view and cached as a Zarr array, or recomputed on each use.

::

    CACHE/<key>.zarr    float16 (N, V, D, g, g) or (N, V, D); the key hashes weights, input, tiles, size, views, and
                        which output and layers of the encoder they are

Each rank computes a share. Any later run with the same key reuses the cache.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import zarr
from torch import Tensor

from finetune.data.code_version import code_version
from finetune.data.datasets import LabeledSplit
from finetune.data.hashes import array_hash, digest
from finetune.encoders.model_file import TaskModel
from finetune.heads.inputs import HeadInput
from pretrain import distributed
from pretrain.console import log
from pretrain.weights.finite import is_finite
from shards.errors import ConfigError, ForgeError
from shards.files.processes import host_name
from shards.files.system_errors import error_text, remedy
from shards.progress import progress

BATCH = 16
COMPLETE = "complete"
"""Attribute that marks a complete cache."""


class FeaturesError(ForgeError):
    """Features that are not finite."""


class Features(Protocol):
    """Features of one split.

    Attributes:
        views: number of views per window.
    """

    views: int

    def batch(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        """Return float32 features (n, D, g, g) or (n, D) of windows ``rows`` in the given views, on the device."""


class CachedFeatures:
    """Features from a cache, held in memory if ``in_memory``."""

    def __init__(self, array: zarr.Array, device: torch.device, in_memory: bool) -> None:
        self.views, self.device = array.shape[1], device
        self._array = torch.from_numpy(np.asarray(array[:])) if in_memory else array
        if isinstance(self._array, Tensor):
            _require_finite(self._array)

    def batch(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        if isinstance(self._array, Tensor):
            return self._array[torch.from_numpy(rows), torch.from_numpy(views)].to(self.device).float()
        features = np.empty((len(rows), *self._array.shape[2:]), np.float16)
        for view in np.unique(views):
            features[views == view] = self._array.oindex[rows[views == view], int(view)]
        return _require_finite(torch.from_numpy(features)).to(self.device).float()


class UncachedFeatures:
    """Features that are recomputed at every call."""

    def __init__(
        self, model: TaskModel, split: LabeledSplit, views: int, device: torch.device, source: HeadInput
    ) -> None:
        self.model, self.split, self.views, self.device, self.source = model, split, views, device, source

    def batch(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        return _require_finite(encode(self.model, self.split, rows, views, self.device, self.source))


@dataclass(frozen=True)
class FeatureStore:
    """Caches features of frozen encoders as Zarr arrays; every rank has a store and computes a share.

    Attributes:
        folder: folder of the arrays, one per key.
        quota_gb: larger arrays are not written; their features are recomputed on every use.
        memory_gb: arrays up to this size are held in memory.
        device: device that runs the encoders.
        heartbeat: called after every batch, see Watchdog.begin.
    """

    folder: Path
    quota_gb: float
    memory_gb: float
    device: torch.device
    heartbeat: Callable[[], None] = lambda: None

    def load(
        self, model: TaskModel, split: LabeledSplit, views: int, name: str, source: HeadInput | None = None
    ) -> Features:
        """Return the features of a split, computing them if they are not cached; a collective call.

        Args:
            model: encoder and input, on the device; its head is not used.
            views: number of views, at most eight.
            name: name of the split, for messages.
            source: which features of the encoder; None for the map, or pooled features, by the kind of the task.

        Raises:
            ConfigError: the folder can't be written.
            FeaturesError: the features are not finite.
        """
        source = source or model.head_input
        shape = (len(split), views, *_feature_shape(model, split, source))
        size_gb = 2 * float(np.prod(shape)) / 1e9
        if size_gb > self.quota_gb:
            log(
                f"{source.describe(name)}: {size_gb:.1f} GB exceed frozen.quota_gb {self.quota_gb:g}: recomputed "
                "on every use; raise it, or lower frozen.views"
            )
            return UncachedFeatures(model, split, views, self.device, source)
        path = self.folder / f"{_key(model, split, views, source)}.zarr"
        if not distributed.broadcast_object(_is_complete(path)):
            log(f"{source.describe(name)}: {len(split)} windows x {views} views, {size_gb:.2f} GB, computed once")
            distributed.raise_on_all_ranks(lambda: _create(path, shape) if distributed.is_main() else None)
            distributed.barrier()
            self._fill(path, model, split, name, source)
            distributed.store_barrier(self.heartbeat)
            if distributed.is_main():
                zarr.open_array(path, mode="r+").attrs[COMPLETE] = True
            distributed.barrier()
        return CachedFeatures(zarr.open_array(path, mode="r"), self.device, in_memory=size_gb <= self.memory_gb)

    def _fill(self, path: Path, model: TaskModel, split: LabeledSplit, name: str, source: HeadInput) -> None:
        """Write this rank's share of the batches; each batch is one chunk, so no two ranks write the same file."""
        array = zarr.open_array(path, mode="r+")
        begins = range(distributed.rank() * BATCH, len(split), distributed.world_size() * BATCH)
        orders = [np.arange(begin, min(begin + BATCH, len(split))) for begin in begins]
        images = split.batches(orders)
        with torch.no_grad():
            batches = zip(orders, images, strict=True)
            for rows, read in progress(f"features {name}", len(orders), batches, "batch", show=distributed.is_main()):
                for view in range(array.shape[1]):
                    tiles = torch.from_numpy(read).to(self.device)
                    features = _encode_tiles(model, _orient_on_device(tiles, view), source)
                    array[rows[0] : rows[-1] + 1, view] = features.half().cpu().numpy()
                self.heartbeat()


def _require_finite(features: Tensor) -> Tensor:
    """Return the features; raise FeaturesError if an encoder has diverged or tiles are broken."""
    if not is_finite(features):
        raise FeaturesError(
            "features are NaN or infinite (stored as float16, up to 65504): the encoder diverged, or the task's images "
            "differ from those it was trained on: compare their statistics, or use another checkpoint"
        )
    return features


@torch.no_grad()
def encode(
    model: TaskModel,
    split: LabeledSplit,
    rows: np.ndarray,
    views: np.ndarray,
    device: torch.device,
    source: HeadInput | None = None,
) -> Tensor:
    """Return float32 features of windows in the given views: (n, D, g, g) for dense task kinds, else (n, D)."""
    tiles = torch.from_numpy(split.oriented(rows, views)).to(device)
    return _encode_tiles(model, tiles, source or model.head_input)


def _encode_tiles(model: TaskModel, tiles: Tensor, source: HeadInput) -> Tensor:
    return source.compute(model.encoder, model.images(tiles)).float()


def _orient_on_device(tiles: Tensor, orientation: int) -> Tensor:
    """Apply `datasets.orient` to a tensor on the device."""
    turned = torch.rot90(tiles, orientation % 4, dims=(-2, -1))
    return turned.flip(-1) if orientation >= 4 else turned


def _create(path: Path, shape: tuple[int, ...]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # one file per batch and view, in which every window can be read separately
        chunk, shard = (1, 1, *shape[2:]), (BATCH, 1, *shape[2:])
        zarr.create_array(path, shape=shape, chunks=chunk, shards=shard, dtype="float16", overwrite=True)
    except OSError as error:
        why = f"{error_text(error)} on {host_name()}: {remedy(error, path)}"
        raise ConfigError(f"{path.parent}: can't store features here: {why}") from None


def _is_complete(path: Path) -> bool:
    try:
        array = zarr.open_array(path, mode="r")
    except (FileNotFoundError, ValueError, KeyError):
        return False
    files = array.shape[1] * -(-array.shape[0] // BATCH)
    has_all_files = array.nchunks_initialized == files * BATCH  # a missing file would be read as zeros
    return bool(has_all_files and array.attrs.get(COMPLETE))


def _feature_shape(model: TaskModel, split: LabeledSplit, source: HeadInput) -> tuple[int, ...]:
    width, stride, _ = source.shape(model.encoder)
    side = split.size // stride
    return (width,) if source.output in ("pooled", "layer_means") else (width, side, side)


def _key(model: TaskModel, split: LabeledSplit, views: int, source: HeadInput) -> str:
    images, known = model.images, model.description
    content = {
        "tiles": split.images_hash,
        "window": [split.size, split.labels.shape[0]],
        "views": views,
        "features": source.to_plain(),
        "encoder": [encoder_hash(model.encoder), known.architecture, known.patch_size, list(model.dilate)],
        "input": [None if tensor is None else array_hash(tensor.cpu().numpy()) for tensor in _input_tensors(model)],
        "clip": images.normalize.clip,
        "code": code_version("features"),
    } | ({} if model.bands is None else {"bands": model.bands})
    return digest(content)[:32]


def _input_tensors(model: TaskModel) -> tuple[Tensor | None, ...]:
    images = model.images
    return images.normalize.mu, images.normalize.sigma, images.response


def encoder_hash(encoder: torch.nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers by name."""
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
