"""Samples of products: each is made by command, once, and known as the product that it is."""

from pathlib import Path

import pytest

from shards.sources.bundles import TILE_SOURCES
from shards.sources.products.product import find_product
from tools import sample_scene
from tools.sample_products import PRODUCTS

KINDS = {"prisma": "prisma_l2d", "emit": "emit_l2a", "desis": "desis_l2a", "eo1": "eo1_l1t", "enmap": "enmap_l2a"}


def test_the_command_knows_every_product():
    assert sample_scene.OTHERS == tuple(PRODUCTS)


@pytest.mark.parametrize("product", [*PRODUCTS, "enmap"])
def test_a_sample_is_made_once_and_recognized_by_its_content(product, tmp_path, capsys):
    command = [str(tmp_path), "--product", product, "--size", "24", "--offset", "150,110"]
    assert sample_scene.main(command) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.parent == tmp_path
    kind = find_product(path)
    assert isinstance(kind, TILE_SOURCES[KINDS[product]]) if product in KINDS else kind is None
    assert sample_scene.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} exists: remove it" in line
