"""Features of a frozen encoder, computed once per view and cached as a Zarr array, or recomputed on each use.

::

    CACHE/<key>.zarr    float16 (N, V, D, g, g) or (N, V, D); the key hashes weights, input, tiles, size, views, and
                        which output and layers of the encoder they are

Each rank computes a share. Any later run with the same key reuses the cache.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import zarr
from torch import Tensor

from finetune.data.code_version import code_version
from finetune.data.datasets import LabeledSplit
from finetune.data.hashes import array_hash, digest
from finetune.encoders.model_file import TaskModel
from finetune.heads.inputs import HeadInput, compute_each
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
        self,
        model: TaskModel,
        split: LabeledSplit,
        views: int,
        name: str,
        source: HeadInput | None = None,
        beside: Sequence[HeadInput] = (),
    ) -> Features:
        """Return the features of a split, computing them if they are not cached; a collective call.

        Args:
            model: encoder and input, on the device; its head is not used.
            views: number of views, at most eight.
            name: name of the split, for messages.
            source: which features of the encoder; None for the map, or pooled features, by the kind of the task.
            beside: further single layers, if the source is one, that are computed and cached in the same pass.

        Raises:
            ConfigError: the folder can't be written.
            FeaturesError: the features are not finite.
        """
        source = source or model.head_input
        kept = self._arrays(model, split, views, dict.fromkeys((source, *beside)))
        size_gb = kept[source].size_gb
        if size_gb > self.quota_gb:
            log(
                f"{source.describe(name)}: {size_gb:.1f} GB exceed frozen.quota_gb {self.quota_gb:g}: recomputed "
                "on every use; raise it, or lower frozen.views"
            )
            return UncachedFeatures(model, split, views, self.device, source)
        complete = distributed.broadcast_object([_is_complete(each.path) for each in kept.values()])
        missing = {
            each: array
            for (each, array), is_complete in zip(kept.items(), complete, strict=True)
            if not is_complete and array.size_gb <= self.quota_gb
        }
        if source in missing:
            self._compute(missing, model, split, views, name)
        in_memory = size_gb <= self.memory_gb
        return CachedFeatures(zarr.open_array(kept[source].path, mode="r"), self.device, in_memory)

    def _arrays(
        self, model: TaskModel, split: LabeledSplit, views: int, sources: Iterable[HeadInput]
    ) -> "dict[HeadInput, _Array]":
        content = _content(model, split, views)  # hashes all weights
        arrays = {}
        for source in sources:
            key = digest(content | {"features": source.to_plain()})[:32]
            shape = (len(split), views, *_feature_shape(model, split, source))
            arrays[source] = _Array(self.folder / f"{key}.zarr", shape)
        return arrays

    def _compute(
        self, arrays: "dict[HeadInput, _Array]", model: TaskModel, split: LabeledSplit, views: int, name: str
    ) -> None:
        """Compute and cache features in one pass over the split."""
        for source, array in arrays.items():
            size = f"{len(split)} windows x {views} views, {array.size_gb:.2f} GB"
            log(f"{source.describe(name)}: {size}, computed once")
        distributed.raise_on_all_ranks(lambda: _create(list(arrays.values())) if distributed.is_main() else None)
        distributed.barrier()
        self._fill(
            {source: zarr.open_array(array.path, mode="r+") for source, array in arrays.items()}, model, split, name
        )
        distributed.store_barrier(self.heartbeat)
        if distributed.is_main():
            for array in arrays.values():
                zarr.open_array(array.path, mode="r+").attrs[COMPLETE] = True
        distributed.barrier()

    def _fill(self, arrays: dict[HeadInput, zarr.Array], model: TaskModel, split: LabeledSplit, name: str) -> None:
        """Write this rank's share of the batches; each batch is one chunk, so no two ranks write the same file."""
        views = next(iter(arrays.values())).shape[1]
        begins = range(distributed.rank() * BATCH, len(split), distributed.world_size() * BATCH)
        orders = [np.arange(begin, min(begin + BATCH, len(split))) for begin in begins]
        images = split.batches(orders)
        with torch.no_grad():
            batches = zip(orders, images, strict=True)
            for rows, read in progress(f"features {name}", len(orders), batches, "batch", show=distributed.is_main()):
                for view in range(views):
                    tiles = _orient_on_device(torch.from_numpy(read).to(self.device), view)
                    found = compute_each(list(arrays), model.encoder, model.images(tiles))
                    for array, features in zip(arrays.values(), found, strict=True):
                        array[rows[0] : rows[-1] + 1, view] = features.half().cpu().numpy()
                self.heartbeat()


@dataclass(frozen=True)
class _Array:
    """An array of the cache, which may not exist yet."""

    path: Path
    shape: tuple[int, ...]

    @property
    def size_gb(self) -> float:
        return 2 * float(np.prod(self.shape)) / 1e9


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
    images = model.images(torch.from_numpy(split.oriented(rows, views)).to(device))
    return (source or model.head_input).compute(model.encoder, images).float()


def _orient_on_device(tiles: Tensor, orientation: int) -> Tensor:
    """Apply `datasets.orient` to a tensor on the device."""
    turned = torch.rot90(tiles, orientation % 4, dims=(-2, -1))
    return turned.flip(-1) if orientation >= 4 else turned


def _create(arrays: Sequence[_Array]) -> None:
    for array in arrays:
        try:
            array.path.parent.mkdir(parents=True, exist_ok=True)
            # one file per batch and view, in which every window can be read separately
            chunk, shard = (1, 1, *array.shape[2:]), (BATCH, 1, *array.shape[2:])
            zarr.create_array(
                array.path, shape=array.shape, chunks=chunk, shards=shard, dtype="float16", overwrite=True
            )
        except OSError as error:
            why = f"{error_text(error)} on {host_name()}: {remedy(error, array.path)}"
            raise ConfigError(f"{array.path.parent}: can't store features here: {why}") from None


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


def _content(model: TaskModel, split: LabeledSplit, views: int) -> dict[str, Any]:
    """Return everything that features depend on, besides which features they are."""
    images, known = model.images, model.description
    return {
        "tiles": split.images_hash,
        "window": [split.size, split.labels.shape[0]],
        "views": views,
        "encoder": [encoder_hash(model.encoder), known.architecture, known.patch_size, list(model.dilate)],
        "input": [None if tensor is None else array_hash(tensor.cpu().numpy()) for tensor in _input_tensors(model)],
        "clip": images.normalize.clip,
        "code": code_version("features"),
    } | ({} if model.bands is None else {"bands": model.bands})


def _input_tensors(model: TaskModel) -> tuple[Tensor | None, ...]:
    images = model.images
    return images.normalize.mu, images.normalize.sigma, images.response


def encoder_hash(encoder: torch.nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers by name."""
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
