"""Tiles, mosaics and EnMAP products that several tests read; tests that change them take a copy."""

import numpy as np
import pytest
from support.deliveries import pixels
from support.tiles import NODATA, write_tile

from tools.sample_scene import SceneOptions, make_scene


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Bytes of GeoTIFFs by a letter, each with pixels of its own."""
    folder = tmp_path_factory.mktemp("tiles")
    return {name: write_tile(folder / f"{name}.tif", pixels(name), nodata=NODATA).read_bytes() for name in "abc"}


@pytest.fixture
def source(tiles, tmp_path):
    """A folder of the tiles."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, data in tiles.items():
        (folder / f"{name}.tif").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def mosaic():
    rng = np.random.default_rng(0)
    return rng.integers(0, 5000, (202, 19, 14)).astype(np.int16)


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("product"), SceneOptions(size=150))


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Two products of the same ground and different days, the second 37 px right and 21 px down."""
    folder = tmp_path_factory.mktemp("products")
    first = make_scene(folder, SceneOptions(size=260))
    second = make_scene(folder, SceneOptions(size=260, offset=(37, 21), day="20220829"))
    return first, second
