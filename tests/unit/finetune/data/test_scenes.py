"""`python -m finetune cut`: classic scenes become tiles that all other commands read."""

import h5py
import numpy as np
import pytest
import rasterio
from scipy.io import savemat

from finetune.__main__ import main
from finetune.config import LabeledDataConfig
from finetune.data.layouts import find_items
from finetune.data.scenes import cut_scene
from finetune.tasks import get_task
from shards.sensors.sensor import NODATA, get_sensor
from shards.sources.geotiff import read_tile
from shards.sources.layouts import SPLITS

ROWS, COLUMNS, BANDS = 25, 24, 4
TASK = """name: small
description: A small scene
sensor: bands.csv
classes:
  - {code: 1, name: water, color: "#0000ff"}
  - {code: 2, name: land, color: "#00ff00"}
ignore: [0]
scene:
  shape: [25, 24, 4]
  tile: 4
  split: |
    TTT.VV
    TTT.VV
    ......
    XXX.TT
    XXX.TT
    ......
"""
ABUNDANCES = (
    TASK.replace("classes:\n", "kind: pixel_regression\ntargets:\n")
    .replace("code: 1, ", "")
    .replace("code: 2, ", "")
    .replace(', color: "#0000ff"', "")
    .replace(', color: "#00ff00"', "")
    .replace("ignore: [0]\n", "")
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(TASK)
    (tmp_path / "bands.csv").write_text("wavelength_nm,fwhm_nm\n500,10\n700,10\n690,10\n900,10\n")
    return tmp_path


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    cube = rng.integers(0, 9000, (ROWS, COLUMNS, BANDS)).astype(np.uint16)
    return {"cube": cube, "gt": rng.integers(0, 3, (ROWS, COLUMNS)).astype(np.uint8)}


def _cut(*files, options=()) -> int:
    return main(["cut", "small.yaml", *map(str, files), "out", *options])


def _cube(folder) -> np.ndarray:
    """Put the tiles together again."""
    sensor = get_sensor("bands.csv")
    tiles = [
        [read_tile(folder / f"out/images/small_{row:02d}_{column:02d}.tif", sensor).values for column in range(6)]
        for row in range(6)
    ]
    return np.moveaxis(np.block(tiles), 0, 2)


def _write_npz(path, arrays):
    np.savez(path, **arrays)


def _write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array.T


def _write_mat(path, arrays):
    savemat(path, arrays)


@pytest.mark.parametrize(
    ("name", "write"),
    [("scene.npz", _write_npz), ("scene.mat", _write_mat), ("scene.mat", _write_hdf5)],
    ids=["npz", "MATLAB 5", "MATLAB 7.3"],
)
def test_a_scene_is_read_from_the_usual_files(folder, arrays, name, write, capsys):
    write(name, arrays)
    assert _cut(name) == 0
    assert "6 x 6 tiles of 4 px: 10 train, 4 val, 6 test" in capsys.readouterr().out
    np.testing.assert_array_equal(_cube(folder), arrays["cube"][:24])


def test_a_raster_and_labels_in_another_file_are_read(folder, arrays):
    _write_mat("gt.mat", {"gt": arrays["gt"]})
    with rasterio.open(
        "cube.tif", "w", driver="GTiff", dtype="uint16", count=BANDS, height=ROWS, width=COLUMNS
    ) as file:
        file.write(np.moveaxis(arrays["cube"], 2, 0))
    assert _cut("cube.tif", "gt.mat") == 0
    np.testing.assert_array_equal(_cube(folder), arrays["cube"][:24])


def test_the_tiles_are_those_of_the_task_and_check_finds_them_good(folder, arrays, capsys):
    _write_npz("scene.npz", arrays)
    _cut("scene.npz")
    folders = [option for name in ("images", "labels", "splits") for option in (f"--{name}", f"out/{name}")]
    assert main(["check", "small.yaml", *folders]) == 0
    assert "small: good, 20 tiles read" in capsys.readouterr().out
    task = get_task("small.yaml")
    data = LabeledDataConfig(images="out/images", labels="out/labels", splits="out/splits")
    items = find_items(data, task, 0)
    assert {name: len(items[name]) for name in SPLITS} == {"train": 10, "val": 4, "test": 6}
    np.testing.assert_array_equal(items["test"][-1].label(), arrays["gt"][16:20, 8:12])


def test_matrices_of_pixels_in_columns_are_abundances(folder, arrays):
    (folder / "small.yaml").write_text(ABUNDANCES)
    shares = np.random.default_rng(1).random((2, ROWS, COLUMNS))
    matrix = arrays["cube"].transpose(2, 1, 0).reshape(BANDS, -1)  # column by column
    _write_mat("scene.mat", {"Y": matrix, "A": shares.transpose(0, 2, 1).reshape(2, -1), "M": np.zeros((BANDS, 2))})
    assert _cut("scene.mat") == 0
    np.testing.assert_array_equal(_cube(folder), arrays["cube"][:24])
    with rasterio.open("out/labels/small_01_02.tif") as file:
        np.testing.assert_array_equal(file.read(), shares[:, 4:8, 8:12].astype(np.float32))


def test_values_beyond_int16_are_missing_and_counted(folder, arrays, capsys):
    arrays["cube"][0, 0] = 40000
    _write_npz("scene.npz", arrays)
    assert _cut("scene.npz") == 0
    assert "4 values are missing" in capsys.readouterr().out
    assert (_cube(folder)[0, 0] == NODATA).all()


def test_a_factor_makes_digital_numbers_of_reflectance(folder, arrays):
    (folder / "small.yaml").write_text(TASK.replace("  tile: 4\n", "  tile: 4\n  factor: 10000\n"))
    _write_npz("scene.npz", arrays | {"cube": arrays["cube"] / 10000})
    assert _cut("scene.npz") == 0
    np.testing.assert_array_equal(_cube(folder), arrays["cube"][:24])


def test_a_scene_without_published_bands_takes_a_table(folder, arrays, capsys):
    _write_npz("scene.npz", arrays)
    (folder / "bands.csv").rename("table.csv")
    assert _cut("scene.npz") == 2
    assert "give a table of them by --bands" in capsys.readouterr().err
    assert _cut("scene.npz", options=["--bands", "table.csv"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].partition("python -m finetune ")[2].split()
    assert command[:2] == ["check", "out/small.yaml"]
    assert main(command) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda arrays: arrays.pop("gt"), "0 arrays have the shape of the labels, 25x24"),
        (lambda arrays: arrays.update(other=arrays["gt"]), "2 arrays have the shape of the labels"),
        (
            lambda arrays: arrays.update(cube=arrays["cube"][:, :, :3]),
            "0 arrays have the shape of the cube, 25x24x4 or",
        ),
        (lambda arrays: arrays.update(gt=arrays["gt"] + 0.5), "values that are not codes"),
    ],
)
def test_arrays_that_do_not_fit_are_named(folder, arrays, change, says, capsys):
    change(arrays)
    _write_npz("scene.npz", arrays)
    assert _cut("scene.npz") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("name", "data"), [("none.mat", None), ("damaged.mat", b"x" * 300), ("damaged.npz", b"x"), ("damaged.tif", b"x")]
)
def test_a_file_that_is_no_scene_is_one_line(folder, name, data, capsys):
    if data is not None:
        (folder / name).write_bytes(data)
    assert _cut(name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


def test_a_task_of_tiles_has_nothing_to_cut(capsys):
    assert main(["cut", "enmap_cdl", "scene.npz", "out"]) == 2
    assert "task enmap_cdl has no scene to cut" in capsys.readouterr().err


def test_the_real_scene_of_jasper_ridge_is_cut(scenes, tmp_path):
    task = get_task("jasper_ridge")
    files = [scenes / "jasper_ridge/jasperRidge2_R198.mat"]
    (line,) = cut_scene(task, task.scene, get_sensor(task.sensor), files, tmp_path)
    assert "9 train, 8 val, 9 test" in line
    data = LabeledDataConfig(images=f"{tmp_path}/images", labels=f"{tmp_path}/labels", splits=f"{tmp_path}/splits")
    labels = np.stack([item.label() for item in find_items(data, task, 0)["train"]])
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-5)
