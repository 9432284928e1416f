"""Values of pixels: units, scale and nodata of the rasters, their place, and windows that images and values share."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from support.tiles import GRID, write_tile

from finetune.config import LabeledDataConfig
from finetune.data.datasets import LabeledSplit
from finetune.data.items import Item
from finetune.data.layouts import find_items
from finetune.data.target_rasters import read_target
from finetune.tasks import Task
from shards.errors import ConfigError, SourceError, TileError
from shards.sources.labels import read_grid

TARGETS = [{"name": "height", "unit": "m"}, {"name": "cover", "unit": "%"}]
TASK = Task.model_validate({"name": "canopy", "description": "d", "kind": "pixel_regression", "targets": TARGETS})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(5):
        write_tile(tmp_path / "images" / f"t{number}.tif", np.full((202, 8, 8), number, np.int16))
    return tmp_path / "images"


def _values() -> np.ndarray:
    return np.random.default_rng(0).random((2, 8, 8)).astype(np.float32) * 30


def test_values_come_in_their_unit_and_nodata_is_nan(images, tmp_path):
    stored = np.arange(64, dtype=np.int16).reshape(1, 8, 8)
    path = write_tile(tmp_path / "height.tif", stored, nodata=5)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.1,), (2.0,)
    found = read_target(path, read_grid(images / "t0.tif"))
    assert found.dtype == np.float32
    assert np.isnan(found[0, 0, 5])
    assert np.isnan(found).sum() == 1
    np.testing.assert_allclose(found[0, 1], np.arange(8, 16) * 0.1 + 2, rtol=1e-6)


def test_floats_at_the_end_of_the_range_and_nan_are_no_values(images, tmp_path):
    values = _values()
    values[0, 0, :3] = np.nan, -3.4028235e38, np.inf
    found = read_target(write_tile(tmp_path / "a.tif", values), read_grid(images / "t0.tif"))
    assert np.isnan(found[0, 0, :3]).all()
    np.testing.assert_array_equal(found[1], values[1])


def test_a_finer_raster_is_refused_or_aligned(images, tmp_path):
    values = np.kron(_values(), np.ones((1, 3, 3), np.float32))
    path = write_tile(tmp_path / "fine.tif", values)
    with rasterio.open(path, "r+") as file:
        file.transform = GRID @ Affine.scale(1 / 3)
    grid = read_grid(images / "t0.tif")
    with pytest.raises(TileError, match=r"fine\.tif: label pixels of 0\.3333 x .* pixels: resample them with --align"):
        read_target(path, grid)
    np.testing.assert_allclose(read_target(path, grid, "nearest"), _values(), rtol=1e-6)


def test_a_raster_turned_against_the_image_is_turned_back(images, tmp_path):
    values = _values()
    path = write_tile(tmp_path / "south.tif", values[:, ::-1])
    with rasterio.open(path, "r+") as file:
        file.transform = GRID @ Affine.translation(0, 8) @ Affine.scale(1, -1)
    np.testing.assert_array_equal(read_target(path, read_grid(images / "t0.tif")), values)


def test_folders_and_one_raster_for_all_give_the_same(images, tmp_path):
    for number in range(5):
        write_tile(tmp_path / "values" / f"t{number}.tif", _values())
    write_tile(tmp_path / "all.tif", _values())
    for labels in ("values", "all.tif"):
        data = LabeledDataConfig(images=str(images), labels=str(tmp_path / labels))
        items = find_items(data, TASK, seed=0)
        assert [len(part) for part in items.values()] == [3, 1, 1]
        np.testing.assert_array_equal(items["test"][0].label(), _values())


def test_what_has_no_values_is_one_line(images, tmp_path):
    (tmp_path / "fields.geojson").write_text("{}")
    with pytest.raises(SourceError, match=r"fields\.geojson: polygons hold classes: task canopy needs rasters"):
        find_items(LabeledDataConfig(images=str(images), labels=str(tmp_path / "fields.geojson")), TASK, 0)
    with pytest.raises(ConfigError, match=r"key 'data\.labels': task canopy needs a folder or file of target rasters"):
        find_items(LabeledDataConfig(images=str(images)), TASK, 0)
    with pytest.raises(
        ConfigError, match=r"key 'data\.shards': shards contain class codes, but task canopy needs values"
    ):
        find_items(LabeledDataConfig(shards="somewhere"), TASK, 0)


def test_windows_of_values_are_cut_like_the_image_and_the_rim_does_not_count():
    values = np.random.default_rng(1).random((2, 5, 7)).astype(np.float32)
    image = np.arange(3 * 35, dtype=np.int16).reshape(3, 5, 7)
    item = Item("a", "a", "", "1", lambda: image, lambda: values)
    split = LabeledSplit([item], TASK, 4, threads=1, keep=True, quiet=True)
    assert split.labels.shape == (4, 2, 4, 4)
    np.testing.assert_array_equal(split.labels[0], values[:, :4, :4])
    np.testing.assert_array_equal(split.labels[3][:, :1, :3], values[:, 4:, 4:])
    assert np.isnan(split.labels[3][:, 1:]).all()
    np.testing.assert_array_equal(split.images(np.array([3]))[0][:, :1, :3], image[:, 4:, 4:])


def test_a_raster_of_other_bands_than_targets_is_named():
    item = Item("a", "a", "", "1", lambda: np.zeros((3, 4, 4), np.int16), lambda: np.zeros((3, 4, 4)))
    with pytest.raises(SourceError, match="a: the target raster has 3 bands, but task canopy has 2 targets"):
        LabeledSplit([item], TASK, 4, threads=1, keep=True, quiet=True)
