"""Scenes as people have them: other formats, places in sidecars and control points, URLs and archives."""

import shutil
import zipfile

import numpy as np
import pytest
import rasterio
import torch
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine
from support.file_server import serve
from support.small_encoder import BANDS, small_description, small_encoder
from support.tiles import GRID, NODATA, spectra, write_tile

from finetune.__main__ import main
from finetune.encoders.model_file import InputDescription, TaskModel
from finetune.predict.scene_map import predict_scene
from pretrain.weights.files import save_encoder

CPU = torch.device("cpu")
VALUES = spectra(1, 20, BANDS)


def features_of(scene, tmp_path):
    encoder, told = small_encoder(), small_description()
    inputs = InputDescription(told.sensor, told.wavelength_nm, told.fwhm_nm, told.mu, told.sigma, told.clip)
    output = tmp_path / "features.tif"
    predict_scene(TaskModel(encoder, told, inputs).eval(), scene, output, 0.5, 8, CPU)
    with rasterio.open(output) as file:
        return file.read(), file.crs, file.transform, file.gcps


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    return features_of(write_tile(folder / "scene.tif", VALUES, nodata=NODATA), folder)


def assert_same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1:3] == expected[1:3]


def test_an_envi_scene(tmp_path, expected):
    size = {"height": 20, "width": 20, "count": BANDS, "dtype": "int16"}
    with rasterio.open(tmp_path / "scene.dat", "w", driver="ENVI", crs="EPSG:32633", transform=GRID, **size) as file:
        file.write(VALUES)
    assert_same(features_of(tmp_path / "scene.dat", tmp_path), expected)


@pytest.mark.parametrize("place", ["http", "zip", "http with sidecar"])
def test_a_scene_that_is_no_local_file(tmp_path, expected, place, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    folder = tmp_path / "scenes"
    folder.mkdir()
    scene = write_tile(folder / "scene.tif", VALUES, nodata=NODATA, georeferenced=place != "http with sidecar")
    if place == "zip":
        with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
            archive.write(scene, "inner/scene.tif")
        assert_same(features_of(f"/vsizip/{tmp_path}/scenes.zip/inner/scene.tif", tmp_path), expected)
        return
    if place == "http with sidecar":
        numbers = ",".join(map(str, GRID.to_gdal()))
        text = f"<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>{numbers}</GeoTransform></PAMDataset>"
        (folder / "scene.tif.aux.xml").write_text(text)
    with serve(folder) as url:
        assert_same(features_of(f"{url}/scene.tif", tmp_path), expected)


def test_ground_control_points_reach_the_map(tmp_path, capsys):
    scene = write_tile(tmp_path / "scene.tif", VALUES, georeferenced=False)
    points = [GroundControlPoint(row, col, *(GRID @ (col, row))) for row, col in [(0, 0), (0, 20), (20, 0), (20, 20)]]
    points[3].x += 900  # no affine grid
    with rasterio.open(scene, "r+") as file:
        file.gcps = points, rasterio.CRS.from_epsg(32633)
    _, _, transform, (kept, crs) = features_of(scene, tmp_path)
    assert transform == Affine.identity()
    assert crs == rasterio.CRS.from_epsg(32633)
    assert [(point.row, point.col, point.x, point.y) for point in kept] == [
        (point.row / 4, point.col / 4, point.x, point.y)
        for point in points  # a pixel of the map is a patch
    ]
    assert "keeps its ground control points" in capsys.readouterr().err


def test_a_scene_without_a_place_is_named(tmp_path, capsys):
    features_of(write_tile(tmp_path / "scene.tif", VALUES, georeferenced=False), tmp_path)
    assert "scene.tif has no georeference, so neither does the map" in capsys.readouterr().err


def test_more_bands_than_the_model_takes(tmp_path, expected):
    told = small_description()
    order = [0, 1, BANDS, *range(2, BANDS), BANDS + 1]
    values = np.concatenate([VALUES, VALUES[:2] + 7])[order]
    centers = np.array([*told.wavelength_nm, 300.0, 9000.0])[order]
    scene = write_tile(tmp_path / "scene.tif", values, nodata=NODATA, wavelengths=list(centers))
    assert_same(features_of(scene, tmp_path), expected)


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        ("http://127.0.0.1:9/scene.tif", "not a readable raster"),
        ("/vsizip/nowhere.zip/scene.tif", "not a readable raster"),
        ("scene.hdr", "not a readable raster"),
        ("nowhere.dat", "no such scene"),
    ],
)
def test_a_scene_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch, scene, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.hdr").write_text("ENVI\nsamples = 4\n")
    encoder = small_encoder()
    save_encoder(tmp_path / "encoder.safetensors", encoder.state_dict(), small_description())
    assert main(["predict", "encoder.safetensors", scene, "out.tif"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"error: {scene}: ")
    assert message in line
    shutil.rmtree(tmp_path, ignore_errors=True)
