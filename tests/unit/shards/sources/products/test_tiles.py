"""Products packed whole: tiles hold what the product holds, and their place, date and masks."""

import tarfile

import numpy as np
import pytest
from rasterio.transform import Affine
from support.products import SMALL, make_product, packed

from shards.__main__ import main
from shards.console import get_logger
from shards.read.reader import ShardReader
from shards.sensors.sensor import NODATA
from shards.sources.image import note_once
from shards.sources.images import open_image
from shards.sources.products.product import find_product
from tools.sample_products import PRODUCTS

LIMITS = ["--max-cloud", "none", "--max-nodata", "none"]
SIZE = 16


def pack(path, dest, *options):
    """Pack a product with its own bands, and return the reader."""
    limits = LIMITS if find_product(path) else []
    command = ["pack", path, dest, "--sensor", path, "--size", SIZE, "--workers", 1, *limits, *options]
    assert main([str(word) for word in command]) == 0
    return ShardReader(dest)


def tile_of(reader, row):
    tile = np.empty((1, *reader.tile_shape), np.int16)
    reader.read([row], tile)
    return tile[0]


@pytest.mark.parametrize("kind", PRODUCTS)
def test_tiles_are_the_product_cut_in_order_of_wavelength(kind, tmp_path):
    path = make_product(kind, tmp_path / "product")
    reader = pack(path, tmp_path / "shards")
    with open_image(path) as image:
        values, grid = image.read(), image.grid
        centers, good = np.asarray(image.wavelength_nm), np.asarray(image.good)
    order = np.argsort(centers, kind="stable")
    order = order[good[order]]
    np.testing.assert_allclose(reader.manifest.wavelength_nm, centers[order], atol=1e-6)
    assert len(reader) >= 1
    described = packed(tmp_path / "shards")
    for row in range(len(reader)):
        tile, description = tile_of(reader, row), described[reader.key(row)]
        corner = Affine(*description["transform"]) @ (0, 0)
        left, top = (round(position) for position in ~Affine(*grid.transform) @ corner)
        np.testing.assert_array_equal(tile, values[order, top : top + SIZE, left : left + SIZE])
        assert (description["crs"], description["date"]) == (grid.crs, "2022-07-24")


@pytest.mark.parametrize(("kind", "layer"), [("prisma", "saturation"), ("emit", "cloud"), ("desis", "cloud")])
def test_flagged_pixels_are_missing_in_tiles_and_statistics(kind, layer, tmp_path):
    path = make_product(kind, tmp_path / "product")
    plain, masked = pack(path, tmp_path / "plain"), pack(path, tmp_path / "masked", "--mask-quality", layer)
    assert masked.manifest.sums.count[80] < plain.manifest.sums.count[80]
    assert (tile_of(masked, 0) == NODATA).sum() >= (tile_of(plain, 0) == NODATA).sum()


def test_a_layer_that_a_product_lacks_is_one_line(tmp_path, capfd):
    path = make_product("prisma", tmp_path / "product")
    command = ["pack", path, tmp_path / "shards", "--sensor", path, "--size", SIZE, "--mask-quality", "mist"]
    assert main([str(word) for word in command]) == 2
    assert "no quality layer 'mist' to mask" in capfd.readouterr().err


def test_a_product_in_a_folder_of_others_is_found(tmp_path):
    folder = tmp_path / "products"
    path = make_product("prisma", folder / "one")
    make_product("prisma", folder / "two", SMALL.__class__(size=40, offset=(150, 110), day="20220829"))
    command = ["pack", folder, tmp_path / "shards", "--sensor", path, "--size", SIZE, "--workers", 1, *LIMITS]
    assert main([str(word) for word in command]) == 0
    reader = ShardReader(tmp_path / "shards")
    keys = [reader.key(row) for row in range(len(reader))]
    assert len({key.partition("_")[0] for key in keys}) * 2 == len(keys)  # two dates of each location


@pytest.mark.parametrize(("kind", "layer"), [("desis", "cloud"), ("prisma", "saturation"), ("emit", "")])
def test_a_product_within_an_archive_is_found_and_masked(kind, layer, tmp_path):
    path = make_product(kind, tmp_path / "product")
    with tarfile.open(tmp_path / "delivery.tar.gz", "w:gz") as tar:
        tar.add(path, f"order/{path.name}")
    options = ["--sensor", path, "--size", SIZE, "--workers", 1, *(["--mask-quality", layer] if layer else []), *LIMITS]
    for source, name in ((tmp_path / "delivery.tar.gz", "archive"), (path, "alone")):
        assert main([str(word) for word in ("pack", source, tmp_path / name, *options)]) == 0
    readers = [ShardReader(tmp_path / name) for name in ("archive", "alone")]
    tiles = [sorted(tile_of(reader, row).tobytes() for row in range(len(reader))) for reader in readers]
    assert tiles[0] == tiles[1] and tiles[0]


def test_packed_products_are_verified_against_their_files(tmp_path, capsys):
    path = make_product("prisma", tmp_path / "product")
    pack(path, tmp_path / "shards", "--mask-quality", "saturation")
    assert main(["verify", str(tmp_path / "shards"), "--source", str(path.parent), "--workers", "1"]) == 0


def test_limits_without_a_quality_layer_are_said(tmp_path, caplog, monkeypatch):
    path = make_product("prisma", tmp_path / "product")
    note_once.cache_clear()
    monkeypatch.setattr(get_logger("").parent, "propagate", True)
    command = ["pack", path, tmp_path / "shards", "--sensor", path, "--size", SIZE, "--workers", 1]
    assert main([str(word) for word in [*command, "--max-nodata", "none"]]) == 0
    assert "no quality layer for --max-cloud, so that limit leaves out no tile" in caplog.text
