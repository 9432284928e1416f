"""Shards as a standard WebDataset stream: a complete pipeline, and a decoder for custom pipelines.

WebDataset imports torch, so it is imported only when a pipeline is built: `shards` itself does not need torch.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import ShardError
from shards.files.storage import open_storage
from shards.files.untrusted import read_json_value, read_npy
from shards.format.codec_registry import build_codec
from shards.format.manifest import MANIFEST, Manifest, parse_json

if TYPE_CHECKING:
    from webdataset import WebDataset

TILE_MEMBERS = {"npy_tile": ("npy",), "geotiff_tile": ("tif", "tiff")}
"""Extensions of the tile members of indexed tars by codec id; shards written by `pack` use ``tile``."""


def pipeline(
    urls: str | Path | Sequence[str | Path], shuffle: int = 64, seed: int = 0, manifest: Manifest | None = None
) -> "WebDataset":
    """Return a stream of decoded samples, split by rank and by DataLoader worker, in shuffled order.

    A sample is ``{"__key__": str, "tile": int16 (bands, height, width), "json": dict}``. Labeled tiles also have
    ``"mask"``, integer (height, width). An epoch yields every tile exactly once, from one worker of one rank. Complete
    shards are distributed, so ranks can get different numbers of tiles, and some processes get none if there are more
    processes than shards. The order of `shards.read.reader` does not depend on the number of processes.

    The rank is taken from ``torch.distributed`` or from ``RANK`` and ``WORLD_SIZE`` when this function is called. The
    order of an epoch depends on ``seed`` and on how many times the process has iterated over the stream: with
    ``DataLoader(..., persistent_workers=True)`` it differs between epochs.

    Args:
        urls: folder or URL of shards, packed or indexed, or a list of its tars.
        shuffle: size of each worker's shuffle buffer in samples; 0 keeps the order of the tars.
        manifest: manifest of the tars; None reads the one in their folder.

    Raises:
        ShardError: if there is no readable manifest or, during iteration, if a tile is damaged.
    """
    import webdataset as wds

    tars, manifest = _find_tars(urls, manifest)
    rank, world_size, _, _ = wds.utils.pytorch_worker_info()
    stream = wds.WebDataset(
        tars,
        shardshuffle=len(tars) if shuffle else False,
        detshuffle=True,
        nodesplitter=partial(_every_nth, first=rank, step=world_size),
        workersplitter=wds.split_by_worker,
        empty_check=False,
        seed=seed,
    )
    if shuffle:
        stream = stream.compose(wds.detshuffle(shuffle, shuffle, seed=seed))
    return stream.map(SampleDecoder(manifest))


class SampleDecoder:
    """A decoder of samples that drops unknown members, since WebDataset's decoders would unpickle some of them.

    Args:
        manifest: manifest of the samples' shards.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._decode, self._names = decoder(manifest), _tile_members(manifest)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the decoded sample; raises ShardError if it has no tile or a member is damaged."""
        decoded: dict[str, Any] = {"__key__": sample["__key__"]}
        where = f"{sample.get('__url__', 'shards')}: sample '{sample['__key__']}'"
        name = next((name for name in self._names if name in sample), None)
        if name is None:
            raise ShardError(f"{where}: lacks a member .{' or .'.join(self._names)}")
        try:
            decoded["tile"] = self._decode(name, sample[name])
            if "json" in sample:
                decoded["json"] = read_json_value(sample["json"])
            if "mask.npy" in sample:
                decoded["mask"] = read_npy(sample["mask.npy"])
        except (ShardError, ValueError) as error:
            raise ShardError(f"{where}: {error}") from None
        return decoded


def decoder(manifest: Manifest) -> Callable[[str, bytes], np.ndarray | None]:
    """Return a decoder of tiles for `webdataset.WebDataset(urls, shardshuffle=False).decode(decoder(manifest))`.

    Tiles are returned as int16 (bands, height, width) under the extension of their member, ``"tile"`` in packed
    shards; WebDataset's own decoders handle the other members. Raises ShardError for damaged bytes.
    """
    return partial(_decode_tile, _tile_members(manifest), build_codec(manifest.codec), tuple(manifest.tile_shape))


def _decode_tile(names: tuple[str, ...], codec: Any, shape: tuple[int, ...], key: str, data: bytes) -> Any:
    if key.removeprefix(".") not in names:
        return None
    return codec.decode(data, np.empty(shape, dtype=np.int16))


def _tile_members(manifest: Manifest) -> tuple[str, ...]:
    return TILE_MEMBERS.get(manifest.codec["id"], ("tile",))


def _find_tars(urls: str | Path | Sequence[str | Path], manifest: Manifest | None) -> tuple[list[str], Manifest]:
    """Return the paths or URLs of the tars, and their manifest."""
    locations = [str(urls)] if isinstance(urls, str | Path) else [str(url) for url in urls]
    is_folder = len(locations) == 1 and not locations[0].endswith(".tar")
    folder = locations[0].rstrip("/") if is_folder else locations[0].rpartition("/")[0] or "."
    if manifest is None:
        storage = open_storage(folder)
        manifest = parse_json(storage.read(MANIFEST), Manifest, f"{folder}/{MANIFEST}")
    return [f"{folder}/{entry.name}" for entry in manifest.shards] if is_folder else locations, manifest


def _every_nth(tars: Iterator[Any], first: int, step: int) -> Iterator[Any]:
    return islice(tars, first, None, step)
