"""Maps of whole scenes: what comes out, how windows are blended, the file, and what a user did wrong."""

import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from support.small_encoder import BANDS, SIZE, small_description, small_encoder
from support.tiles import GRID, NODATA, spectra, write_tile

from finetune.__main__ import main
from finetune.encoders.model_file import InputDescription, TaskModel, load_task_model, save_task_model
from finetune.heads.build import build_head
from finetune.predict import scene_map
from finetune.predict.cog import MapFormat, write_cog
from finetune.predict.scene_map import class_values, predict_scene
from finetune.predict.sliding_window import WindowPlan, blend, window_weight
from finetune.tasks import Task, TaskClass, get_task
from finetune.tasks.kinds.kind import kind_of
from pretrain.models.initialize import initialize
from pretrain.weights.files import save_encoder
from shards.errors import ConfigError, SourceError
from shards.sensors.sensor import get_sensor
from shards.sources.grid import Grid
from tools.sample_scene import SceneOptions, make_scene

CPU, ENMAP = torch.device("cpu"), get_sensor("enmap")
TASKS = {"segmentation": "sample_materials", "multilabel": "enmap_corine", "regression": "hyperview"}


def small_model(kind="segmentation", **described):
    """A model of a kind of task, or a bare encoder for the kind "features", with drawn weights."""
    encoder, told = small_encoder(), small_description(**described)
    inputs = InputDescription(told.sensor, told.wavelength_nm, told.fwhm_nm, told.mu, told.sigma, told.clip)
    if kind == "features":
        return TaskModel(encoder, told, inputs).eval()
    task = get_task(TASKS[kind])
    name = kind_of(task).published_heads[0]
    head = build_head(name, kind_of(task), encoder.feature_dim, encoder.stride)
    initialize(head, "head", 3)
    return TaskModel(encoder, told, inputs, name, head, task).eval()


def enmap_bands():
    """Changes to a description for the 202 bands of EnMAP."""
    told = {"wavelength_nm": list(ENMAP.wavelength_nm), "fwhm_nm": list(ENMAP.fwhm_nm)}
    return told | {"mu": [2000.0] * ENMAP.num_bands, "sigma": [1500.0] * ENMAP.num_bands}


def map_of(tmp_path, model, values, name="map.tif", overlap=0.5, batch=5):
    """Pixels (bands, height, width) and metadata of the map of a scene with these values, and the summary."""
    scene = write_tile(tmp_path / "scene.tif", values, nodata=NODATA)
    summary = predict_scene(model, scene, tmp_path / name, overlap, batch, CPU)
    with rasterio.open(tmp_path / name) as file:
        return file.read(), file.profile, summary


@pytest.fixture(scope="module")
def scene_values():
    """A scene of 17 x 22 px: no multiple of anything, with missing bands, and no data at its left and lower rims."""
    values = spectra(7, 22, BANDS)[:, :17]
    values[:, :, :9] = NODATA
    values[:, 15:, :] = NODATA
    return values


# ---- what comes out ----


@pytest.mark.parametrize("kind", [*TASKS, "features"])
def test_a_scene_of_one_window_is_what_the_model_says(tmp_path, kind):
    model, values = small_model(kind), spectra(1, SIZE, BANDS)
    values[:, 0, 0] = 1234  # all is measured
    with torch.no_grad():
        said = model(torch.from_numpy(values)[None])[0].numpy()
    found, profile, summary = map_of(tmp_path, model, values)
    if kind == "segmentation":
        assert np.array_equal(found[0], said + 1)  # the task's codes are 1 to 6
    elif kind == "features":
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
    if kind == "segmentation":
        nodata = np.isnan(wanted[0])
        assert np.array_equal(found[0], np.where(nodata, 0, wanted.argmax(0) + 1))
        assert np.array_equal(found, again)
        assert len(np.unique(found)) > 2
    else:
        assert np.allclose(found, wanted, atol=1e-5, equal_nan=True)
        assert np.allclose(found, again, atol=1e-5, equal_nan=True)


def _blended(model, values, overlap):
    """The same by a plain loop over windows, in float64, from the last window to the first."""
    kind = model.task.kind if model.task else "features"
    step = round(SIZE * (1 - overlap))
    cell = {"segmentation": 1, "features": 4}.get(kind, step)
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
            output = output.softmax(1) if kind == "segmentation" else output
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


# ---- windows ----


def test_every_row_is_read_once_and_leaves_as_soon_as_it_is_done():
    plan, asked, given = WindowPlan(45, 30, 16, 8, 4), [], []

    def read(begin, end):
        asked.append((begin, end))
        return np.ones((3, end - begin, 30), np.int16)

    def predict(windows):
        return np.ones((len(windows), 2, 4, 4), np.float32)

    for part in blend(plan, read, predict, 2, 3, lambda *_: None):
        assert np.allclose(part, 1)
        given.append((part.shape, len(asked)))
    assert asked == [(0, 16), (16, 24), (24, 32), (32, 40), (40, 45)]
    assert given == [((2, 2, 8), 1), ((2, 2, 8), 2), ((2, 2, 8), 3), ((2, 2, 8), 4), ((2, 4, 8), 5)]


def test_windows_at_half_overlap_add_up_to_one():
    weight = window_weight(16)
    assert np.allclose(weight[:8, :8] + weight[8:, :8] + weight[:8, 8:] + weight[8:, 8:], 1)
    assert weight.min() > 0


# ---- the file ----


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


# ---- the command ----


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A folder with model.safetensors, encoder.safetensors and scene.tif."""
    folder, model = tmp_path_factory.mktemp("command"), small_model()
    save_task_model(folder / "model.safetensors", model)
    save_encoder(folder / "encoder.safetensors", model.encoder.state_dict(), model.description)
    write_tile(folder / "scene.tif", spectra(1, 20, BANDS), nodata=NODATA)
    return folder


def _main(command, tmp_path, *options, model="model.safetensors", scene="scene.tif"):
    return main(["predict", str(command / model), str(command / scene), str(tmp_path / "out.tif"), *options])


def test_the_command_says_what_it_did(command, tmp_path, capsys):
    assert _main(command, tmp_path, "--device", "cpu", "--overlap", "0.25") == 0
    told = capsys.readouterr().out
    assert "20 x 20 px from 9 windows" in told
    assert "0.25%  no data" in told
    assert str(tmp_path / "out.tif") in told
    assert _main(command, tmp_path, "--overwrite", model="encoder.safetensors") == 0
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.count, file.height, file.width) == (192, 5, 5)


def test_a_model_from_its_file_maps_as_the_model_itself(command, tmp_path):
    assert _main(command, tmp_path) == 0
    predict_scene(small_model(), command / "scene.tif", tmp_path / "b.tif", 0.5, 1, CPU)
    with rasterio.open(tmp_path / "out.tif") as first, rasterio.open(tmp_path / "b.tif") as second:
        assert np.array_equal(first.read(), second.read())


def test_stopped_by_hand_it_leaves_nothing(command, tmp_path, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scene_map, "predictor", lambda *_: stopped)
    assert _main(command, tmp_path) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _damage(name):
    def change(folder: Path) -> dict[str, str]:
        (folder / name).write_bytes((folder / name).read_bytes()[:-5000])
        return {}

    return change


def _header(old: bytes, new: bytes):
    """Bytes of the model's header changed, as many as before."""

    def change(folder: Path) -> dict[str, str]:
        data = (folder / "model.safetensors").read_bytes()
        assert old in data
        assert len(old) == len(new)
        (folder / "model.safetensors").write_bytes(data.replace(old, new, 1))
        return {}

    return change


def _other_scene(values, **options):
    def change(folder: Path) -> dict[str, str]:
        write_tile(folder / "scene.tif", values, **options)
        return {}

    return change


def _text(folder: Path) -> dict[str, str]:
    (folder / "scene.tif").write_text("no image")
    return {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda _: {"scene": "none.tif"}, "none.tif: no such scene"),
        (lambda _: {"scene": "."}, "no EnMAP L2A product"),
        (lambda _: {"model": "none.safetensors"}, "none.safetensors"),
        (_text, "scene.tif: not a readable raster"),
        (_damage("scene.tif"), "scene.tif: "),
        (_damage("model.safetensors"), "model.safetensors: "),
        (_header(b"dilate", b"dilute"), "model.safetensors: its description is damaged"),
        (_header(b"head.segm", b"head.sgem"), "model.safetensors: its description is damaged or doesn't fit"),
        (_other_scene(spectra(1, 9, 60)), "scene.tif: 60 bands and no wavelengths"),
        (_other_scene(spectra(1, 9, 80), wavelengths=[500.0 + 5 * band for band in range(80)]), "wavelengths are not"),
        (_other_scene(spectra(1, 9, 80).astype(np.uint16)), "scene.tif: value 32768 in band 1 is beyond int16"),
    ],
)
def test_what_a_user_did_wrong_is_one_line(command, tmp_path, capsys, change, told):
    folder = tmp_path / "in"
    shutil.copytree(command, folder)
    assert _main(folder, tmp_path, **change(folder)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert told in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_output_is_not_replaced_unasked(command, tmp_path, capsys):
    (tmp_path / "out.tif").write_text("mine")
    assert _main(command, tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.tif").read_text() == "mine"
    scene, model = str(command / "scene.tif"), str(command / "model.safetensors")
    assert main(["predict", model, scene, scene, "--overwrite"]) == 2
    assert "belongs to the scene" in capsys.readouterr().err
    assert main(["predict", model, scene, str(tmp_path / "none" / "out.tif")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert _main(command, tmp_path, "--overwrite", "--device", "warp") == 2
    assert "--device warp" in capsys.readouterr().err


def test_a_model_without_wavelengths_is_refused(tmp_path):
    model = small_model(wavelength_nm=[], fwhm_nm=[], sensor="unknown")
    scene = write_tile(tmp_path / "scene.tif", spectra(1, 9, BANDS))
    with pytest.raises(ConfigError, match="doesn't say which"):
        predict_scene(model, scene, tmp_path / "map.tif", 0.5, 1, CPU)


def test_a_scene_of_fractions_is_refused(tmp_path):
    scene = write_tile(tmp_path / "scene.tif", spectra(1, 9, BANDS).astype(np.float32) / 10000)
    with pytest.raises(SourceError, match="is no whole number: store reflectance x 10000"):
        predict_scene(small_model(), scene, tmp_path / "map.tif", 0.5, 1, CPU)


def test_an_encoder_file_loads_as_a_model_without_a_head(command):
    assert load_task_model(command / "encoder.safetensors").task is None
