"""Maps of whole scenes: what comes out of every kind of task, and scenes as they come."""

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from support.small_encoder import BANDS, SIZE
from support.task_models import CPU, ENMAP, TASKS, enmap_bands, map_of, small_model
from support.tiles import GRID, NODATA, spectra, write_tile

from finetune.heads.build import fit_to_labels
from finetune.predict.scene_map import class_values, predict_scene
from finetune.tasks import Task, TaskClass, get_task
from finetune.tasks.kinds.kind import LabelSummary
from tools.sample_scene import SceneOptions, make_scene


@pytest.mark.parametrize("kind", [*TASKS, "features"])
def test_a_scene_of_one_window_is_what_the_model_says(tmp_path, kind):
    model, values = small_model(kind), spectra(1, SIZE, BANDS)
    values[:, 0, 0] = 1234  # all is measured
    with torch.no_grad():
        said = model(torch.from_numpy(values)[None])[0].numpy()
    found, profile, summary = map_of(tmp_path, model, values)
    if kind in ("segmentation", "classification"):
        assert (found[0] == said + 1).all()  # the tasks' codes are 1 to 6
    elif kind in ("features", "pixel_regression"):
        assert np.allclose(found, said, atol=1e-5)
    else:
        assert found.shape[1:] == (2, 2)  # squares of half a window
        assert np.allclose(found, said[:, None, None], atol=1e-5)
    assert (summary.windows, summary.skipped, profile["crs"].to_epsg()) == (1, 0, 32633)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("kind", [*TASKS, "features"])
def test_windows_are_blended_whatever_the_batch(tmp_path, kind, overlap, scene_values):
    model = small_model(kind)
    found, _, _ = map_of(tmp_path, model, scene_values, "a.tif", overlap, 1)
    again, _, _ = map_of(tmp_path, model, scene_values, "b.tif", overlap, 64)
    wanted = _blended(model, scene_values, overlap)
    if kind in ("segmentation", "classification"):
        nodata = np.isnan(wanted[0])
        assert np.array_equal(found[0], np.where(nodata, 0, wanted.argmax(0) + 1))
        assert np.array_equal(found, again)
        assert len(np.unique(found)) > 1
    else:
        assert np.allclose(found, wanted, atol=1e-5, equal_nan=True)
        assert np.allclose(found, again, atol=1e-5, equal_nan=True)


def _blended(model, values, overlap):
    """The same by a plain loop over windows, in float64, from the last window to the first."""
    kind = model.task.kind.name if model.task else "features"
    step = round(SIZE * (1 - overlap))
    cell = {"segmentation": 1, "pixel_regression": 1, "features": 4}.get(kind, step)
    height, width = (-(-side // cell) * cell for side in values.shape[1:])
    rows, columns = ([*range(0, side - SIZE, step), side - SIZE] for side in (height, width))
    padded = np.full((len(values), height, width), NODATA, np.int16)
    padded[:, : values.shape[1], : values.shape[2]] = values
    ramp = np.sin(np.pi * (np.arange(SIZE // cell) + 0.5) / (SIZE // cell)) ** 2
    sums, weights = 0.0, np.zeros((height // cell, width // cell))
    for y in reversed(rows):
        for x in reversed(columns):
            window = padded[:, y : y + SIZE, x : x + SIZE]
            if (window == NODATA).all():
                continue
            with torch.no_grad():
                output = model.scores(torch.from_numpy(window.copy())[None]).double()
            output = output.softmax(1) if kind in ("segmentation", "classification") else output
            output = (output.sigmoid() if kind == "multilabel" else output).numpy()[0]
            here = np.zeros((len(output), *weights.shape))
            place = np.s_[..., y // cell : (y + SIZE) // cell, x // cell : (x + SIZE) // cell]
            here[place] = output.reshape(len(output), *output.shape[1:] or (1, 1)) * np.outer(ramp, ramp)
            sums = sums + here
            weights[place] += np.outer(ramp, ramp)
    measured = (padded != NODATA).any(0).reshape(height // cell, cell, width // cell, cell).any((1, 3))
    return np.where(measured, sums / np.where(measured, weights, 1), np.nan)


def test_nodata_is_kept_and_windows_without_data_are_left_out(tmp_path, scene_values):
    found, profile, summary = map_of(tmp_path, small_model(), scene_values, overlap=0.0)
    missing = (scene_values == NODATA).all(0)
    assert np.array_equal(found[0] == 0, missing)
    assert profile["nodata"] == 0
    assert (summary.windows, summary.skipped) == (3 * 2, 3)  # rows from 0, 8 and 9, columns from 0, 8 and 14
    assert summary.counts["no data"] == missing.sum()
    assert sum(summary.counts.values()) == missing.size


@pytest.mark.parametrize("kind", ["segmentation", "features", "regression"])
def test_a_scene_smaller_than_a_window(tmp_path, kind):
    found, _, _ = map_of(tmp_path, small_model(kind), spectra(3, 5, BANDS)[:, :, :3])
    shape = {"segmentation": (5, 3), "features": (2, 1), "regression": (2, 1)}[kind]
    assert found.shape[1:] == shape
    assert not np.isnan(found[:, :, -1]).any()


def test_bands_are_named_and_features_lie_on_the_grid_of_patches(tmp_path, scene_values):
    map_of(tmp_path, small_model("multilabel"), scene_values, "labels.tif")
    map_of(tmp_path, small_model("regression"), scene_values, "values.tif")
    map_of(tmp_path, small_model("features"), scene_values, "features.tif")
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert file.descriptions == tuple(get_task("enmap_corine").outputs)
        assert file.transform == GRID @ Affine.scale(4)
        assert np.nanmin(file.read()) >= 0
        assert np.nanmax(file.read()) <= 1
    with rasterio.open(tmp_path / "values.tif") as file:
        assert file.descriptions == ("P", "K", "Mg", "pH")
        assert set(file.dtypes) == {"float32"}
        assert np.isnan(file.nodata)
    with rasterio.open(tmp_path / "features.tif") as file:
        assert (file.count, file.height, file.width) == (192, 5, 6)
        assert file.transform == GRID @ Affine.scale(4)


def test_values_of_pixels_keep_their_unit_and_what_is_not_measured_is_missing(tmp_path, scene_values):
    model = small_model("pixel_regression")
    fit_to_labels(model.head, LabelSummary(mean=np.array([250.0]), std=np.array([1.0])))
    found, profile, _ = map_of(tmp_path, model, scene_values)
    missing = (scene_values == NODATA).all(0)
    assert np.array_equal(np.isnan(found[0]), missing)
    assert 240 < np.nanmean(found) < 260
    assert (profile["dtype"], profile["transform"]) == ("float32", GRID)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert (file.descriptions, file.units) == (("greenness",), ("%",))


def test_a_class_map_tells_its_classes_and_colors(tmp_path, scene_values):
    map_of(tmp_path, small_model(), scene_values)
    task = get_task("sample_materials")
    with rasterio.open(tmp_path / "map.tif") as file:
        colors, tags = file.colormap(1), file.tags(1)
        assert (file.dtypes, file.transform, file.crs.to_epsg()) == (("uint8",), GRID, 32633)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags()["task"] == "sample_materials"
    assert colors[0] == (0, 0, 0, 0)
    for one in task.classes:
        assert colors[one.code] == (*bytes.fromhex(one.color[1:]), 255)
        assert tags[f"class_{one.code}"] == one.name
    names = (tmp_path / "map.tif.aux.xml").read_text()
    assert names.index("cropland") < names.index("water")


def test_names_of_an_older_map_do_not_stay(tmp_path, scene_values):
    map_of(tmp_path, small_model(), scene_values)
    map_of(tmp_path, small_model("features"), scene_values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.tif", "scene.tif"]


def test_values_are_the_codes_of_the_task_where_they_fit():
    def task(*classes):
        return Task(name="a", description="b", classes=[TaskClass(name="c", color="#000000", **one) for one in classes])

    assert class_values(task({"code": 4}, {"code": 211})) == ([4, 211], 0)
    assert class_values(task({"code": 0}, {"code": 900})) == ([0, 900], 255)
    assert class_values(task({"code": 0}, {"code": 255})) == ([1, 2], 0)
    assert class_values(task({"code": 4}, {"codes": [5, 6]})) == ([1, 2], 0)
    assert class_values(task({"code": 4}, {"code": 3301010000})) == ([1, 2], 0)
    assert class_values(task({"code": -1}, {"code": 7})) == ([1, 2], 0)


# ---- scenes ----


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("product"), SceneOptions(size=96))


def test_a_product_gives_what_its_202_bands_give(tmp_path, product):
    model, image = small_model(**enmap_bands()), next(product.glob("*SPECTRAL_IMAGE.TIF"))
    with rasterio.open(image) as file:
        values = file.read([band + 1 for band in ENMAP.kept])
    wanted, profile, _ = map_of(tmp_path, model, values, overlap=0.0)
    for number, scene in enumerate((product, image)):
        output = tmp_path / f"{number}.tif"
        predict_scene(model, scene, output, 0.0, 8, CPU)
        with rasterio.open(output) as file:
            assert np.array_equal(file.read(), wanted)
            assert file.transform == profile["transform"]
    assert np.array_equal(wanted[0] == 0, (values == NODATA).all(0))


def test_bands_in_another_order_are_found_by_wavelength(tmp_path, scene_values):
    model = small_model()
    wanted, _, _ = map_of(tmp_path, model, scene_values)
    order = np.random.default_rng(0).permutation(BANDS)
    centers = [model.inputs.wavelength_nm[band] for band in order]
    scene = write_tile(tmp_path / "shuffled.tif", scene_values[order], nodata=NODATA, wavelengths=centers)
    predict_scene(model, scene, tmp_path / "b.tif", 0.5, 5, CPU)
    with rasterio.open(tmp_path / "b.tif") as file:
        assert np.array_equal(file.read(), wanted)


def test_a_scene_without_a_georeference_gives_a_map_without_one(tmp_path, recwarn):
    scene = write_tile(tmp_path / "scene.tif", spectra(1, 9, BANDS), georeferenced=False)
    predict_scene(small_model(), scene, tmp_path / "map.tif", 0.5, 5, CPU)
    assert not [one for one in recwarn if "georeferenc" in str(one.message).lower()]
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs is None
