"""Maps as files: tiled, with overviews, and there whole or not at all."""

import socket

import numpy as np
import pytest
import rasterio
from support.task_models import TASKS, map_of, small_model
from support.tiles import GRID

from finetune.predict.cog import MapFormat, write_cog
from shards.sources.grid import Grid


def _rows(values, upto=None):
    for begin in range(0, upto or values.shape[1], 50):
        yield values[:, begin : begin + 50]
    if upto is not None:
        raise KeyboardInterrupt


MAP = MapFormat(1, "uint8", 0, ("a",), {}, {0: "no data", 1: "b", 2: "c"}, {1: (1, 2, 3, 255)})
FLOATS = MapFormat(3, "float32", float("nan"), ("a", "b", "c"))


@pytest.mark.parametrize(("raster", "block"), [(MAP, 256), (FLOATS, 128)])
def test_a_cog_is_tiled_with_overviews(tmp_path, raster, block):
    values = np.random.default_rng(0).integers(0, 3, (raster.count, 600, 290)).astype(raster.dtype)
    path = tmp_path / "a.tif"
    write_cog(path, raster, Grid(600, 290, "EPSG:32633", tuple(GRID)[:6]), _rows(values))
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(), values)
        assert file.profile["tiled"]
        assert file.block_shapes[0] == (block, block)
        assert file.overviews(1)[0] == 2
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.descriptions == raster.names
        smaller = file.read(1, out_shape=(300, 145))
    if raster is MAP:
        assert set(np.unique(smaller)) <= {0, 1, 2}  # overviews mix no classes


def test_rio_cogeo_finds_no_fault(tmp_path, scene_values):
    cogeo = pytest.importorskip("rio_cogeo", reason="rio-cogeo is no part of the project: pip install rio-cogeo")
    for kind in (*TASKS, "features"):
        map_of(tmp_path, small_model(kind), scene_values, f"{kind}.tif")
        assert cogeo.cog_validate(tmp_path / f"{kind}.tif", strict=True) == (True, [], [])


def test_nothing_that_looks_whole_is_there_before_the_end(tmp_path):
    seen = []

    def watched(rows):
        for part in rows:
            seen.append([path.name for path in tmp_path.iterdir()])
            yield part

    values = np.ones((1, 600, 290), np.uint8)
    grid = Grid(600, 290, "EPSG:32633", tuple(GRID)[:6])
    with pytest.raises(KeyboardInterrupt):
        write_cog(tmp_path / "a.tif", MAP, grid, watched(_rows(values, upto=400)))
    assert len(seen) == 8
    assert all(name.endswith(".tmp") for names in seen for name in names)
    assert not list(tmp_path.iterdir())
    (tmp_path / f"a.tif.rows.{socket.gethostname()}.{2**30}.1.tmp").write_bytes(b"left by a run that was killed")
    write_cog(tmp_path / "a.tif", MAP, grid, _rows(values))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "a.tif.aux.xml"]
