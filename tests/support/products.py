"""Sample products of other sensors, and what their files say."""

import json
import tarfile
from pathlib import Path

import numpy as np

from shards.sensors.sensor import NODATA
from shards.sources.images import open_image
from tools.sample_ground import SceneOptions
from tools.sample_products import PRODUCTS

SMALL = SceneOptions(size=40, offset=(150, 110))
"""A product with a part of the cloud and of the swath's edge."""


def make_product(kind: str, folder: Path, options: SceneOptions = SMALL) -> Path:
    """Write a sample product and return its path."""
    return PRODUCTS[kind](folder, options)


def cube_of(path: Path, *masked: str) -> np.ndarray:
    """Return all bands of a product as float64 digital numbers, NaN where missing."""
    with open_image(path, masked) as image:
        values = image.read().astype(float)
    values[values == NODATA] = np.nan
    return values


def packed(folder: Path) -> dict[str, dict]:
    """Return the descriptions of the samples in a folder of shards, by key."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".json"):
                    found[member.name.removesuffix(".json")] = json.load(tar.extractfile(member))
    return found
