"""Maps of products in their native files: on the product's grid, without what its quality layers flag."""

import numpy as np
import pytest
import rasterio
import torch
from support.products import SMALL, make_product
from support.small_encoder import SIZE, small_description
from support.task_models import CPU, enmap_bands, small_model

from finetune.__main__ import main
from finetune.encoders.model_file import InputDescription, TaskModel, save_task_model
from finetune.predict.scene_map import predict_scene
from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.weights.pretrained import PretrainedEncoder
from pretrain.weights.resample import resample
from shards.errors import ConfigError
from shards.sources.images import open_image
from shards.sources.scene_sensor import find_sensor
from tools.sample_products import PRODUCTS


def model_of(path):
    """Return a small segmentation model with the bands of a product."""
    sensor = find_sensor(str(path))
    told = {"sensor": sensor.name, "wavelength_nm": list(sensor.wavelength_nm), "fwhm_nm": list(sensor.fwhm_nm)}
    return small_model(**told, mu=[2000.0] * sensor.num_bands, sigma=[1500.0] * sensor.num_bands)


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_map_has_the_place_of_its_product(kind, tmp_path):
    path = make_product(kind, tmp_path / "product")
    predict_scene(model_of(path), path, tmp_path / "map.tif", 0, 8, CPU)
    with rasterio.open(tmp_path / "map.tif") as file, open_image(path) as image:
        assert file.crs == image.grid.crs and tuple(file.transform)[:6] == pytest.approx(image.grid.transform)
        measured = (image.read() != -32768).any(0)
        np.testing.assert_array_equal(file.read(1) != file.nodata, measured)


def map_of_product(model, path, output, bands="same"):
    predict_scene(model, path, output, 0, 8, CPU, bands=bands)
    with rasterio.open(output) as file:
        return file.read()


def test_resampling_the_model_s_own_bands_changes_nothing(tmp_path):
    path = make_product("prisma", tmp_path / "product")
    maps = [map_of_product(model_of(path), path, tmp_path / f"{bands}.tif", bands) for bands in ("same", "resample")]
    np.testing.assert_array_equal(*maps)


@pytest.mark.parametrize("kind", ["prisma", "emit"])
def test_a_model_of_another_sensor_maps_a_scene_that_is_resampled_to_its_bands(kind, tmp_path):
    path, model = make_product(kind, tmp_path / "product"), small_model("features", **enmap_bands())
    features = map_of_product(model, path, tmp_path / "map.tif", "resample")
    assert np.isfinite(features).any() and features.shape[0] == model.encoder.feature_dim

    with open_image(path) as image:
        sensor = find_sensor(str(path))
        cube = image.read(image.select(sensor)).astype(np.float32)
    cube[cube == -32768] = np.nan
    resampled = resample(cube, sensor.wavelength_nm, sensor.fwhm_nm, to=model.description)
    tile = np.where(np.isnan(resampled), -32768, resampled)[None, :, :SIZE, :SIZE]
    with torch.inference_mode():
        corner = model.scores(torch.from_numpy(tile.astype(np.float32)))[0].numpy()
    measured = np.isfinite(features[:, : corner.shape[1], : corner.shape[2]])
    np.testing.assert_allclose(features[:, : corner.shape[1], : corner.shape[2]][measured], corner[measured], atol=1e-4)


def test_an_encoder_by_wavelength_takes_the_scene_s_own_bands(tmp_path):
    path, stem = make_product("prisma", tmp_path / "product"), {"stem": {"name": "wave"}}
    network = build_encoder("spec_vit_tiny", SIZE, 4, **stem)
    initialize(network, "small", 1)
    described = small_description(**enmap_bands(), config={"model": stem})
    inputs = InputDescription("enmap", described.wavelength_nm, described.fwhm_nm, described.mu, described.sigma, None)
    features = map_of_product(TaskModel(network, described, inputs).eval(), path, tmp_path / "map.tif", "native")

    with open_image(path) as image:
        sensor = find_sensor(str(path))
        window = image.read(image.select(sensor))[:, 2 * SIZE : 3 * SIZE, 2 * SIZE : 3 * SIZE]
    expected = PretrainedEncoder(network, described).features(window, sensor.wavelength_nm, sensor.fwhm_nm)[0].numpy()
    cells = slice(2 * SIZE // 4, 3 * SIZE // 4)
    np.testing.assert_allclose(features[:, cells, cells], expected, atol=1e-4)

    with pytest.raises(ConfigError, match="--bands native: spec_vit_tiny takes bands of its own only: use resample"):
        map_of_product(small_model("features", **enmap_bands()), path, tmp_path / "other.tif", "native")


def test_a_scene_of_other_bands_is_refused_with_the_way_out(tmp_path, capsys):
    path = make_product("prisma", tmp_path / "product")
    save_task_model(tmp_path / "model.safetensors", small_model(**enmap_bands()))
    assert main(["predict", str(tmp_path / "model.safetensors"), str(path), str(tmp_path / "map.tif")]) == 2
    assert "--bands resample computes them from the scene's" in capsys.readouterr().err


def test_flagged_pixels_have_no_class(tmp_path, capsys):
    path = make_product("desis", tmp_path / "product")
    save_task_model(tmp_path / "model.safetensors", model_of(path))
    command = ["predict", str(tmp_path / "model.safetensors"), str(path), str(tmp_path / "map.tif"), "--overlap", "0"]
    assert main([*command, "--mask-quality", "cloud"]) == 0
    with rasterio.open(tmp_path / "map.tif") as file, open_image(path, ["cloud"]) as image:
        measured = (image.read() != -32768).any(0)
        np.testing.assert_array_equal(file.read(1) != file.nodata, measured)
    assert measured.mean() < 0.6
    assert main([*command, "--overwrite", "--mask-quality", "mist"]) == 2
    assert "no quality layer 'mist' to mask: it has cloud_shadow, snow, haze, cloud, water" in capsys.readouterr().err


def test_a_swath_without_a_lookup_table_keeps_its_control_points(tmp_path):
    import h5py

    path = make_product("emit", tmp_path / "product", SMALL)
    with h5py.File(path, "r+") as file:
        del file["location/glt_x"], file["location/glt_y"]
    predict_scene(model_of(path), path, tmp_path / "map.tif", 0, 8, CPU)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert len(file.gcps[0]) == 25 and (file.height, file.width) == (40, 40)
