"""Configs and batches for objectives in one process."""

from dataclasses import replace

import numpy as np
import torch

from pretrain.config import PretrainConfig
from pretrain.data.draws import to_device
from pretrain.data.stream import TileBatch
from pretrain.models.normalize import Normalizer
from pretrain.objectives.objective import Objective
from shards.format.manifest import Manifest

BANDS, SIZE = 80, 12
CPU = torch.device("cpu")


def small_config(objective: dict, **sections: dict) -> PretrainConfig:
    values = {
        "run": {"dir": "x", "seed": 5},
        "data": {"shards": "x"},
        "augment": {"crop_scale": [0.3, 1.0], "blur": 0.5},
        "model": {"name": "spec_vit_tiny", "image_size": 8, "bn_group": 2},
        "objective": objective,
        "train": {"steps": 50, "global_batch": 4, "micro_batch": 4},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return PretrainConfig.model_validate(values)


def manifest(bands: int = BANDS) -> Manifest:
    """Return a manifest with the fields that objectives read: the shape of tiles, bands and statistics."""
    return Manifest.model_construct(
        tile_shape=[bands, SIZE, SIZE],
        wavelength_nm=[420.0 + 10 * band for band in range(bands)],
        fwhm_nm=[10.0] * bands,
        mean=[1000.0] * bands,
        std=[400.0] * bands,
    )


def normalizer() -> Normalizer:
    return Normalizer([1000.0] * BANDS, [400.0] * BANDS)


def with_draws(objective: Objective, batch: TileBatch) -> TileBatch:
    """Return the batch as the stream yields it to an objective."""
    draws = objective.draws(batch.samples, batch.sources.numpy())
    return replace(batch, draws={name: to_device(arrays, CPU) for name, arrays in draws.items()})


def tile_batch(objective: Objective, first: int = 0) -> TileBatch:
    """Return four samples of an objective, two of which have a second date."""
    generator = np.random.default_rng(first)
    tiles = torch.from_numpy(generator.integers(0, 2000, (6, BANDS, SIZE, SIZE), dtype=np.int16))
    rows = torch.tensor([[0, 1], [2, 3], [4, 4], [5, 5]])
    places, sources = torch.tensor([10, 11, 12, 13]) + first, torch.zeros(6, dtype=torch.int64)
    batch = TileBatch(tiles, np.arange(first, first + 4), rows, places, sources[:4], sources)
    return with_draws(objective, batch)
