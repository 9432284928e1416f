"""Shards as a PyTorch dataset, for notebooks and custom training loops."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from shards.errors import ConfigError
from shards.read.reader import TileDataset
from shards.read.reader import open_dataset as open_tiles


class TileTensors(Dataset[Tensor]):
    """A dataset in which ``dataset[i]`` is tile i, int16 (bands, height, width). Supports DataLoader workers.

    Attributes:
        tiles: the same tiles as NumPy arrays, with their table and manifest.
    """

    def __init__(self, tiles: TileDataset) -> None:
        self.tiles = tiles

    @property
    def wavelength_nm(self) -> list[float]:
        """Band centers in nm."""
        return self.tiles.manifest.wavelength_nm

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, position: int) -> Tensor:
        return torch.from_numpy(self.tiles[position])

    def mask(self, position: int) -> Tensor | None:
        """Return the label codes of a tile, int16 (height, width), or None."""
        codes = self.tiles.mask(position)
        return None if codes is None else torch.from_numpy(codes)


def open_dataset(location: str | Path, **view: object) -> TileTensors:
    """Open the output of `shards pack`, e.g. ``open_dataset(folder, split="train")``; see ``shards.open_dataset``.

    Raises:
        ShardError: a file is missing or damaged.
        ConfigError: a condition is unknown, its value is invalid, or the dataset lacks the split.
    """
    tiles = open_tiles(location, **view)  # type: ignore[arg-type]
    if view.get("split") and not len(tiles):
        table = tiles.reader.table
        known = [name.decode() for name in np.unique(table["split"]) if name]
        if view["split"] not in known:
            has = f"it has {', '.join(known)}" if known else "pack it with --labels and --splits"
            raise ConfigError(f"{location}: the dataset has no tiles in the '{view['split']}' split: {has}")
    return TileTensors(tiles)
